"""The notebook runs from top to bottom in a new kernel, and is committed without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.commands import ROOT

NOTEBOOK = ROOT / "notebooks" / "revdeq.ipynb"
SHORT = """
MAX_STEPS = 6
OPTIONS = [
    "--model.hidden_size=32", "--model.intermediate_size=32", "--data.batch_size=64",
    "--trainer.limit_val_batches=2", "--trainer.accelerator=cpu",
]
"""


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def execute(notebook, folder, parameters):
    """Run a notebook in `folder`, with the code `parameters` after its cell of parameters."""
    index = [cell.metadata.get("tags") == ["parameters"] for cell in notebook.cells].index(True)
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(parameters))
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, kernel_name="python3", timeout=120, resources=resources).execute()


def printed(notebook, cell_id):
    """The text that a cell printed to stdout."""
    cell = next(cell for cell in notebook.cells if cell.id == cell_id)
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def test_committed_notebook_has_no_outputs(notebook):
    for cell in notebook.cells:
        assert not cell.get("outputs"), cell.id
        assert cell.get("execution_count") is None, cell.id


def test_notebook_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the kernel runs in another folder
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    execute(notebook, tmp_path, SHORT)

    header, *rows = printed(notebook, "toy").splitlines()
    differences = [float(row.split()[-1]) for row in rows]
    assert header.endswith("gradients differ by")
    assert len(differences) == 4
    assert max(differences) < 1e-10

    loss = float(re.match(r"(\S+) nats per byte", printed(notebook, "validation"))[1])
    assert 2 < loss < 7  # six steps from log(257) = 5.5
    plot = next(cell for cell in notebook.cells if cell.id == "plot")
    assert any("image/png" in output.get("data", {}) for output in plot.outputs)
    text = printed(notebook, "generate")
    assert text.startswith("The ")
    assert len(text) > 50
    folder = Path(printed(notebook, "tensorboard").split()[-1])
    assert folder.is_relative_to(tmp_path.resolve())
    assert list(folder.glob("events.out.tfevents*"))


def test_colab_without_repository_raises(notebook, tmp_path):
    del notebook.cells[3:]
    with pytest.raises(CellExecutionError, match="set REPOSITORY above to the address"):
        execute(notebook, tmp_path, "import sys\nsys.modules['google.colab'] = sys")
