"""Fixtures shared by all tests: where the real data lies, and one thread so that small models run fast."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def zoo_data() -> Path:
    """The folder of real data, $ZOO_DATA; the test is skipped where there is none."""
    path = Path(os.environ.get("ZOO_DATA", ROOT / ".." / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data in {path}: set ZOO_DATA to a folder that holds it")
    return path


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
