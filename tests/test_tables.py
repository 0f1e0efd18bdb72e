"""The tables in the README and the cards are what the rows in results/ say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_tables_are_made_from_the_rows():
    subprocess.run([sys.executable, "benchmarks/tables.py", "--check"], cwd=ROOT, check=True)


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda p: p.name)
def test_a_row_says_how_it_was_made(path):
    for row in json.loads(path.read_text()):
        assert {"commit", "date", "command", "torch"} <= row.keys()
