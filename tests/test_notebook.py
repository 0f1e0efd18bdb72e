"""The notebooks run from top to bottom in a new kernel, and hold the outputs of their present code."""

import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from benchmarks.notebooks import DIGEST, KEPT, code_digest, without_outputs
from tests.commands import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BRIEF = ["--trainer.limit_val_batches=2", "--trainer.accelerator=cpu"]
SHORT = """
MAX_STEPS = 6
OPTIONS = [
    "--model.hidden_size=32", "--model.intermediate_size=32", "--data.batch_size=64",
    "--trainer.limit_val_batches=2", "--trainer.accelerator=cpu",
]
"""


def read(name):
    return without_outputs(nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4))


def execute(notebook, folder, parameters, kernel=None):
    """Run a notebook in `folder`, with the code `parameters` after its cell of parameters.

    Args:
        notebook: the notebook, which receives the outputs.
        folder: the working directory.
        parameters: Python code.
        kernel: manager of a running kernel, in which the notebook runs with an empty namespace; None for a new kernel.
    """
    index = [cell.metadata.get("tags") == ["parameters"] for cell in notebook.cells].index(True)
    notebook.cells.insert(index + 1, nbformat.v4.new_code_cell(parameters))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"%reset -f\n%cd -q {folder}"))
    client = NotebookClient(notebook, kernel_name="python3", km=kernel, timeout=300)
    try:
        client.execute()
    finally:
        if client.kc is not None:  # a client of a kernel that goes on
            client.kc.stop_channels()


def printed(notebook, cell_id):
    """The text that a cell printed to stdout."""
    cell = next(cell for cell in notebook.cells if cell.id == cell_id)
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def has_image(notebook, cell_id):
    cell = next(cell for cell in notebook.cells if cell.id == cell_id)
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.fixture(scope="module")
def kernel():
    """A kernel for several notebooks, which imports torch and Lightning once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # the kernel runs in another folder
        patch.setenv("OMP_NUM_THREADS", "1")
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel()
        yield manager
        manager.shutdown_kernel(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_has_the_outputs_of_its_code(path):
    """After a change of a notebook's code: python benchmarks/notebooks.py NAME."""
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert notebook.metadata[DIGEST] == code_digest(notebook)
    assert path.stat().st_size < 250_000
    assert any(output.output_type == "stream" for output in outputs)
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name", "stdout") == "stdout"
        assert {*output.get("data", {})} <= {*KEPT}
        text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
        assert not re.search(r"(^|[\s'\"])/(tmp|home|root|work)/", text), text  # a path of the machine


def test_revdeq_runs_from_top_to_bottom(kernel, tmp_path):
    notebook = read("revdeq")
    execute(notebook, tmp_path, SHORT, kernel)

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

    table = printed(notebook, "validation")
    assert re.search(r"^val_loss .* unigram \S+, trigram \S+$", table, re.MULTILINE)
    loss = float(re.search(r"^(\S+) nats per byte", table, re.MULTILINE)[1])
    assert 2 < loss < 7  # six steps from log(257) = 5.5
    assert has_image(notebook, "plot")
    text = printed(notebook, "generate")
    assert text.startswith("The ")
    assert len(text) > 50
    folder = Path(printed(notebook, "tensorboard").split()[-1])
    assert folder.is_relative_to(tmp_path.resolve())
    assert list(folder.glob("events.out.tfevents*"))


def test_llama_runs_from_top_to_bottom(kernel, tmp_path):
    notebook = read("llama")
    options = ["--model.dim=16", "--model.n_layers=1", "--data.seq_len=32", *BRIEF]
    execute(notebook, tmp_path, f"MAX_STEPS, OPTIONS = 6, {options}", kernel)

    products = {line.split()[-1] for line in printed(notebook, "toy").splitlines()}
    assert len(products) == 1
    names, losses = zip(*(line.split()[:2] for line in printed(notebook, "validation").splitlines()), strict=True)
    assert names == ("Llama:", "unigram:", "bigram:", "trigram:")
    assert 4 < float(losses[0]) < 7  # six steps from log(257) = 5.5
    assert [float(loss) for loss in losses[1:]] == pytest.approx([3.2, 2.5, 1.8], abs=0.1)
    assert printed(notebook, "generate").count("--- temperature") == 3
    assert printed(notebook, "export-hf").startswith("config.json, model.safetensors: logits differ by 0.0")


def test_llama_classifier_runs_from_top_to_bottom(kernel, tmp_path):
    notebook = read("llama_classifier")
    options = ["--model.dim=16", "--model.n_layers=1", *BRIEF]
    execute(notebook, tmp_path, f"MAX_STEPS, OPTIONS = 6, {options}", kernel)
    accuracies = [float(line.split()[-1]) for line in printed(notebook, "validation").splitlines()]
    assert accuracies[1:] == [0.744, 0.504]  # as `zoo validate` prints them
    assert has_image(notebook, "plot")
    lines = printed(notebook, "predict").splitlines()
    assert len(lines) == 4
    assert {line.split()[0] for line in lines} <= {"positive", "negative"}


def test_mini_rlm_runs_from_top_to_bottom(kernel, tmp_path):
    notebook = read("mini_rlm")
    execute(notebook, tmp_path, 'STEPS, ROWS = {"lstm": 4, "mlp": 4}, 200', kernel)
    assert printed(notebook, "data").startswith("{'train': 144, 'val': 16, 'test': 40}")
    rows = [line.rsplit(maxsplit=2) for line in printed(notebook, "scores").splitlines()[1:]]
    assert [row[0] for row in rows[:3]] == ["lstm", "mlp", "random forest"]
    assert float(rows[-1][1]) == pytest.approx(5 * (2 / 3.14159) ** 0.5, rel=0.2)  # the mean of |N(0, 5)| is 3.99
    assert has_image(notebook, "plot")


def test_icr_runs_from_top_to_bottom(kernel, tmp_path):
    notebook = read("icr")
    execute(notebook, tmp_path, "STEPS, PROMPTS = 4, 200", kernel)
    assert "200 different tasks" in printed(notebook, "data")
    table = [line.rsplit(maxsplit=2) for line in printed(notebook, "distances").splitlines()[1:]]
    zeros = [[float(cell) for cell in row[1:]] for row in table if row[0].endswith(" 0")]
    assert len(table) == 6
    assert zeros[0][0] == pytest.approx(0.577, abs=0.1)  # the distance of 0 from ridge on new tasks, as in the README
    assert has_image(notebook, "plot")
    assert printed(notebook, "predict").startswith("task        1.00  -1.00")


@pytest.mark.slow
def test_regress_lm_densities_runs_from_top_to_bottom(kernel, tmp_path):
    notebook = read("regress_lm_densities")
    execute(notebook, tmp_path, "STEPS, BATCH_SIZE, DIM, SAMPLES = 20, 32, 16, 50", kernel)
    lines = printed(notebook, "distance").splitlines()
    # The last two columns do not depend on the model: other true points, and points of all texts.
    table = [[float(number) for number in line.split()[-3:]] for line in lines[1:9]]
    assert all(abs(true) < 0.1 < anywhere for _, true, anywhere in table)
    assert float(lines[-1].split()[-1]) == pytest.approx(sum(row[0] for row in table) / 8, abs=1e-3)
    assert has_image(notebook, "plot")
    assert "other true samples" in printed(notebook, "rows")


@pytest.mark.slow
def test_regress_lm_ranking_runs_from_top_to_bottom(kernel, tmp_path):
    notebook = read("regress_lm_ranking")
    parameters = "TRAIN, VALIDATION, CANDIDATES, SYNTHETIC, EPOCHS, DIM = 32, 16, 40, 200, 2, 16"
    execute(notebook, tmp_path, parameters, kernel)
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
