"""Fixtures shared by all tests: real data, a text file, a finished run, one thread and one seed."""

import os
import signal
from pathlib import Path

import pytest

# Before torch is imported, as `zoo` does for ranks: no C++ warnings about ranks that have ended.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch

from tests.commands import ROOT, TEXT, fit


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)  # otherwise training in a test would depend on the tests before it


@pytest.fixture(scope="session")
def zoo_data() -> Path:
    """The folder of real data, $ZOO_DATA; the test is skipped where it does not exist."""
    path = Path(os.environ.get("ZOO_DATA", ROOT / ".." / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data in {path}: set ZOO_DATA to a folder that holds it")
    return path


@pytest.fixture(autouse=True)
def _quiet_signals():
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored after Ctrl-C


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def run(tmp_path_factory, text_file):
    """A finished run of four steps."""
    out = tmp_path_factory.mktemp("runs") / "fox"
    assert fit(out, text_file) == 0
    return out


def _hide_gpu(patch: pytest.MonkeyPatch) -> None:
    """No GPU for torch and Lightning in this process, nor in processes that it starts."""
    patch.setenv("CUDA_VISIBLE_DEVICES", "")
    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setattr(torch.cuda, "device_count", lambda: 0)
    patch.setattr(torch.cuda, "is_initialized", lambda: False)  # otherwise Lightning refuses to fork


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """A test without the mark `gpu` runs as on a machine without one, its fixtures included."""
    if item.get_closest_marker("gpu") is not None:
        try:
            return (yield)
        finally:
            torch.set_float32_matmul_precision("highest")  # a run on a GPU has allowed TF32
    with pytest.MonkeyPatch.context() as patch:
        _hide_gpu(patch)
        return (yield)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu") is not None:  # not the keyword: a folder of the path may have this name
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
