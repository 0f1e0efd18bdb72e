"""The notebooks run from top to bottom in a new kernel, and are committed without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.commands import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SHORT = """
MAX_STEPS = 6
OPTIONS = [
    "--model.hidden_size=32", "--model.intermediate_size=32", "--data.batch_size=64",
    "--trainer.limit_val_batches=2", "--trainer.accelerator=cpu",
]
"""


def read(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


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


def has_image(notebook, cell_id):
    cell = next(cell for cell in notebook.cells if cell.id == cell_id)
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the kernel runs in another folder
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_has_no_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs"), cell.id
        assert cell.get("execution_count") is None, cell.id


def test_revdeq_runs_from_top_to_bottom(environment, tmp_path):
    notebook = read("revdeq")
    execute(notebook, tmp_path, SHORT)

    # Training shows one output, which is replaced at every update.
    fit = next(cell for cell in notebook.cells if cell.id == "fit")
    [line] = [output.data["text/plain"] for output in fit.outputs if output.output_type == "display_data"]
    assert re.match(r"step 6/6 100 % \|█+\| [^,]+, 00:00 left, train_loss \S+, val_loss \S+", line)
    assert not any("\r" in output.text for output in fit.outputs if output.output_type == "stream")

    header, *rows = printed(notebook, "toy").splitlines()
    differences = [float(row.split()[-1]) for row in rows]
    assert header.endswith("gradients differ by")
    assert len(differences) == 4
    assert max(differences) < 1e-10

    loss = float(re.match(r"(\S+) nats per byte", printed(notebook, "validation"))[1])
    assert 2 < loss < 7  # six steps from log(257) = 5.5
    assert has_image(notebook, "plot")
    text = printed(notebook, "generate")
    assert text.startswith("The ")
    assert len(text) > 50
    folder = Path(printed(notebook, "tensorboard").split()[-1])
    assert folder.is_relative_to(tmp_path.resolve())
    assert list(folder.glob("events.out.tfevents*"))


@pytest.mark.slow
def test_regress_lm_densities_runs_from_top_to_bottom(environment, tmp_path):
    notebook = read("regress_lm_densities")
    execute(notebook, tmp_path, "STEPS, BATCH_SIZE, DIM, SAMPLES = 20, 32, 16, 50")
    lines = printed(notebook, "distance").splitlines()
    # The last two columns do not depend on the model: other true points, and points of all texts.
    table = [[float(number) for number in line.split()[-3:]] for line in lines[1:9]]
    assert all(abs(true) < 0.1 < anywhere for _, true, anywhere in table)
    assert float(lines[-1].split()[-1]) == pytest.approx(sum(row[0] for row in table) / 8, abs=1e-3)
    assert has_image(notebook, "plot")
    assert "other true samples" in printed(notebook, "rows")


@pytest.mark.slow
def test_regress_lm_ranking_runs_from_top_to_bottom(environment, tmp_path):
    notebook = read("regress_lm_ranking")
    execute(notebook, tmp_path, "TRAIN, VALIDATION, CANDIDATES, SYNTHETIC, EPOCHS, DIM = 32, 16, 40, 200, 2, 16")
    assert "32 rows for training, 16 for validation, 40 candidates" in printed(notebook, "data")
    forest, _, *lines, oracle = printed(notebook, "ranking").splitlines()[1:]
    assert re.match(r"random forest: Spearman 0\.[2-9]", forest)
    rows = [line.rsplit(maxsplit=3) for line in lines]
    assert [name for name, k, *_ in rows if k == "1"] == ["RegressLM", "random forest", "random order"]
    [chance] = [recall for name, k, recall, _ in rows if (name, k) == ("random order", "10")]
    assert float(chance) == 0.25
    assert oracle.startswith("oracle: ")
    assert has_image(notebook, "plot")


def test_regress_lm_ranking_reads_a_table(tmp_path, capsys):
    table = tmp_path / "mine.csv"
    table.write_text("size,kind,time\n" + "".join(f"{i},{i % 7},{i / 2}\n" for i in range(88)))
    cells = {cell.id: cell.source for cell in read("regress_lm_ranking").cells}
    values: dict = {}
    exec(cells["parameters"], values)
    values |= {"TABLE": str(table), "TARGET": "time", "TRAIN": 32, "VALIDATION": 16}
    exec(cells["data"], values)
    assert "32 rows for training, 16 for validation, 40 candidates" in capsys.readouterr().out
    assert {example.x: example.y for example in values["examples"]}["size: 10, kind: 3"] == 5.0


def test_colab_without_repository_raises(tmp_path):
    notebook = read("revdeq")
    del notebook.cells[3:]
    with pytest.raises(CellExecutionError, match="set REPOSITORY above to the address"):
        execute(notebook, tmp_path, "import sys\nsys.modules['google.colab'] = sys")
