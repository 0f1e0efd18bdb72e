"""Weights that come with the zoo: their names, their file, what they reach, and models that start from them."""

import hashlib

import numpy as np
import pytest

from tests.commands import complaint
from zoo import weights
from zoo.cli.command_line import ZooCLI
from zoo.errors import UserError
from zoo.regress_lm import Example, ExampleInput, RegressLM
from zoo.weights import FOLDER, WEIGHTS, ProjectWeights, find_weights

QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def test_files_are_those_that_were_published_and_small():
    for entry in WEIGHTS.values():
        assert hashlib.sha256((FOLDER / entry.file).read_bytes()).hexdigest() == entry.sha256
        assert (FOLDER / entry.file).stat().st_size < 10e6
        assert entry.command.startswith("zoo fit --config")


def test_a_path_is_unchanged_and_an_unknown_name_is_refused():
    assert find_weights("runs/best.ckpt") == "runs/best.ckpt"
    with pytest.raises(UserError, match=r"no weights zoo:regres-lm; did you mean zoo:regress-lm\?"):
        find_weights("zoo:regres-lm")


def test_a_damaged_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"weights")
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setitem(WEIGHTS, "a", ProjectWeights("a.ckpt", digest, "zoo fit --config a", ("val_loss", 1.0)))
    assert find_weights("zoo:a") == str(tmp_path / "a.ckpt")
    (tmp_path / "a.ckpt").write_bytes(b"weight")
    with pytest.raises(UserError, match="is missing or not as it was published"):
        find_weights("zoo:a")


def test_resuming_from_weights_is_refused(capsys):
    said = complaint(capsys, 1, "fit", "--ckpt_path=zoo:regress-lm")
    assert "start from its weights with --model.weights zoo:regress-lm" in said
    said = complaint(capsys, 1, "validate", "--ckpt_path=zoo:llama")
    assert "the zoo has no weights zoo:llama" in said


def test_validate_reproduces_the_metric(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, value = WEIGHTS["regress-lm"].metric
    cli = ZooCLI(["validate", "--ckpt_path=zoo:regress-lm", "--model.num_samples=1", *QUIET])
    assert cli.trainer.callback_metrics[name].item() == pytest.approx(value, abs=1e-3)
    assert list(tmp_path.rglob("*.ckpt")) == []
    assert cli.trainer.default_root_dir == "runs/regresslm"


def test_fine_tuning_learns_a_new_table_in_a_few_epochs():
    """160 rows of a table with other columns than those of the pretraining: from scratch, six epochs learn nothing."""
    random, n = np.random.default_rng(0), 300
    width, depth, colour = random.uniform(0, 9, n), random.lognormal(3, 1, n), random.choice(["red", "blue"], n)
    y = 2 * width + 5 * np.log(depth) + 6 * (colour == "red")
    texts = [f"width: {w:.3f}, depth: {d:.4g}, colour: {c}" for w, d, c in zip(width, depth, colour, strict=True)]
    examples = [Example(text, float(target)) for text, target in zip(texts, y, strict=True)]
    errors = {}
    for name, path in (("default", "zoo:regress-lm"), ("scratch", None)):
        model = RegressLM.from_default(weights=path)
        model.fine_tune(examples[:160], examples[160:200], max_epochs=6, batch_size=16, progress=False)
        samples = model.sample([ExampleInput(text) for text in texts[200:]], 32, seed=0)
        errors[name] = np.abs(np.median(samples, axis=1) - y[200:]).mean()
    median_error = np.abs(np.median(y[:160]) - y[200:]).mean()  # 6.2
    assert errors["default"] < 0.6 * median_error
    assert errors["scratch"] > 0.9 * median_error
