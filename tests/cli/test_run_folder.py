"""A command that is refused or fails before its first batch leaves no file or folder."""

import pytest

from tests.commands import MICRO, TINY, complaint, fit
from zoo.__main__ import main
from zoo.errors import UserError
from zoo.llama import LlamaLM

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_fit_writes_config_events_and_hyperparameters(run):
    names = {path.name.split(".")[0] for path in run.iterdir()}
    assert names == {"best", "last", "config", "hparams", "events"}


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ("--model.dim=17", 1),
        ("--data.seq_len=100000", 1),
        ("--model.max_seq_len=4", 1),
        ("--early_stopping.monitor=nothing --early_stopping.patience=1", 1),
        ("--data.batch_size=100000", 1),
        ("--trainer.accumulate_grad_batches=0", 1),
        ("--model.lr=no", 2),
    ],
)
def test_a_refused_fit_leaves_nothing(option, code, text_file, tmp_path, capsys):
    words = [f"--config={TINY}", *MICRO, f"--data_dir={text_file}", f"--output_dir={tmp_path / 'runs' / 'new'}"]
    complaint(capsys, code, "fit", *words, *option.split())
    assert files(tmp_path) == []


@pytest.mark.parametrize("hook", ["training_step", "validation_step", "on_train_start"])
def test_a_failure_in_the_first_batch_leaves_nothing(hook, text_file, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("the data is wrong")

    monkeypatch.setattr(LlamaLM, hook, fail)
    assert fit(tmp_path / "new", text_file, "--trainer.num_sanity_val_steps=1") == 1
    assert files(tmp_path) == []


def test_missing_data_leaves_nothing(tmp_path, capsys):
    words = ["fit", f"--config={TINY}", *MICRO, f"--output_dir={tmp_path / 'runs' / 'new'}"]
    complaint(capsys, 1, *words, f"--data_dir={tmp_path / 'none.txt'}")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    complaint(capsys, 1, *words, f"--data_dir={empty}")
    assert files(tmp_path) == ["empty.txt"]


@pytest.mark.parametrize("verb", ["validate", "test", "predict", "generate"])
def test_a_refused_evaluation_leaves_nothing_and_touches_no_run(verb, run, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    checkpoint = [f"--ckpt_path={run / 'last.ckpt'}"]
    out = [f"--output_dir={tmp_path / 'new' / 'deep'}"]
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    wrong = ["--top_p=7"] if verb == "generate" else [f"--data_dir={empty}"]
    complaint(capsys, 1, verb, *checkpoint, *out, *wrong, *QUIET)
    complaint(capsys, 1, verb, *checkpoint, *wrong, *QUIET)
    assert files(tmp_path) == ["empty.txt"]
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_prediction_that_fails_late_leaves_no_folder(run, tmp_path, monkeypatch):
    def fail(*_):
        raise UserError("the row is wrong")

    monkeypatch.setattr(LlamaLM, "predict_step", fail)
    path = tmp_path / "a" / "b" / "predictions.jsonl"
    assert main(["predict", f"--ckpt_path={run / 'last.ckpt'}", f"--predictions.path={path}", *QUIET]) == 1
    assert files(tmp_path) == []


def test_a_resumed_run_without_steps_left_changes_nothing(text_file, tmp_path):
    assert fit(tmp_path / "run", text_file, max_steps=2) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert fit(tmp_path / "run", text_file, "--ckpt_path=last", max_steps=2) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
