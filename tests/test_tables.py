"""The tables in the README and the model cards are those generated from results/."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_a_benchmark_can_be_imported(name):
    importlib.import_module(f"benchmarks.{name}")


def test_tables_are_up_to_date():
    subprocess.run([sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, check=True)


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda p: p.name)
def test_a_row_names_its_commit_date_command_and_torch(path):
    for row in json.loads(path.read_text()):
        assert {"commit", "date", "command", "torch"} <= row.keys()
