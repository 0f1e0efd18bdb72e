"""Pretraining of the encoder by `zoo fit`: one command for both phases, resuming, wrong options, unlabelled texts."""

import os
import re
import signal
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from tests.commands import complaint
from tests.regress_lm.test_denoising import SMALL, sentences
from zoo.callbacks import budget
from zoo.cli.command_line import ZooCLI
from zoo.datamodules import TextRegression
from zoo.errors import UserError
from zoo.regress_lm import RegressLM
from zoo.regress_lm.denoising import Denoising


@pytest.fixture
def data(tmp_path):
    """A table of labelled texts, and a text file without labels."""
    rows = [f"{text},{text.count('o')}" for text in sentences(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,y", *rows]) + "\n")
    (tmp_path / "more.txt").write_text("\n\n".join(sentences(80, seed=1)) + "\n")
    return tmp_path


def words_of_fit(data, folder, *options: str) -> list[str]:
    model = ["--model=RegressLM", "--model.num_samples=8", "--model.dropout=0.1", "--model.pretrain_steps=9"]
    model += [f"--model.{name}={value}" for name, value in SMALL.items()]
    settings = ["--data=TextRegression", f"--data_dir={data / 'rows.csv'}", "--data.target_columns=y"]
    settings += ["--data.tokenizer=words", "--data.batch_size=8", f"--data.unlabelled={data / 'more.txt'}"]
    trainer = ["max_steps=6", "accelerator=cpu", "enable_progress_bar=false", "enable_model_summary=false"]
    trainer += ["num_sanity_val_steps=0", "log_every_n_steps=1"]
    trainer = [f"--trainer.{option}" for option in trainer]
    return ["fit", *model, *settings, *trainer, f"--output_dir={folder}", *options]


def fit(data, folder, *options: str) -> ZooCLI:
    return ZooCLI(words_of_fit(data, folder, *options))


def resume(folder) -> ZooCLI:
    return ZooCLI(["fit", f"--ckpt_path={folder / 'last.ckpt'}", "--trainer.accelerator=cpu"])


def stop_in(monkeypatch, cls: type, method: str, call: int, run: Callable[[], object]) -> None:
    """Run a command and send SIGTERM to it in a call of a method."""
    original, calls = getattr(cls, method), []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(cls, method, interrupted)
        with pytest.raises(SystemExit):
            run()


def progress(run) -> tuple[int, int]:
    """Steps of pretraining and of training in last.ckpt."""
    stored = torch.load(run / "last.ckpt", weights_only=True)
    return stored["pretraining"]["step"], stored["global_step"]


def test_a_run_that_is_stopped_in_both_phases_is_bitwise_the_same(data, tmp_path, monkeypatch, capsys):
    fit(data, tmp_path / "straight")
    report = capsys.readouterr().err
    assert re.search(r"pretraining the encoder on 1\d\d texts .* steps 1 to 9", report)
    assert "pretraining is complete" in report

    run = tmp_path / "stopped"
    stop_in(monkeypatch, Denoising, "train_step", 4, lambda: fit(data, run))
    assert (
        f"stopped by SIGTERM in the pretraining, of which step 4 is saved; to continue: zoo fit --ckpt_path {run}"
        in (capsys.readouterr().err)
    )
    assert progress(run) == (4, 0)
    stop_in(monkeypatch, RegressLM, "training_step", 3, lambda: resume(run))
    assert "steps 5 to 9" in capsys.readouterr().err
    assert progress(run) == (9, 3)
    resume(run)
    assert "pretraining" not in capsys.readouterr().err
    weights = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("straight", "stopped")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not any("sentinels" in name for name in weights[0])
    # The stored phase has the vocabulary of both kinds of texts, and predicts without the text file.
    (data / "more.txt").unlink()
    ZooCLI(["predict", f"--ckpt_path={run / 'best.ckpt'}", "--trainer.enable_progress_bar=false"])


def test_changed_texts_and_steps_are_refused_on_resume(data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    stop_in(monkeypatch, Denoising, "train_step", 1, lambda: fit(data, run, "--data.tokenizer=bytes"))
    with pytest.raises(UserError, match="pretrain_steps is 8 here and 9 in the checkpoint"):
        ZooCLI(["fit", f"--ckpt_path={run / 'last.ckpt'}", "--model.pretrain_steps=8"])
    (data / "more.txt").write_text("other words\n")
    with pytest.raises(UserError, match="the texts to pretrain on have changed"):
        resume(run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.unlabelled=nowhere.txt"], "no text is at nowhere.txt"),
        (["--data.unlabelled="], "--data.unlabelled is empty"),
        (["--data.unlabelled=blank.txt"], "--data.unlabelled blank.txt has no text, only blank lines"),
        (["--data.unlabelled=rows.bin"], "holds no text: give files of"),
        (["--data.unlabelled=other.csv"], "other.csv has no column 'text'"),
        (["--model.pretrain_steps=0"], "pretrain_steps must be at least 1"),
        (["--model.lora_rank=2"], "--data.unlabelled pretrains all weights of the encoder"),
    ],
)
def test_wrong_options_are_named(options, message, data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(data)
    (data / "blank.txt").write_text(" \n\n")
    (data / "rows.bin").write_bytes(b"1")
    (data / "other.csv").write_text("words,y\na b,1\n")
    assert message in complaint(capsys, 1, *words_of_fit(data, tmp_path / "run", *options))
    assert not (tmp_path / "run").exists()


def test_a_budget_shortens_the_pretraining_and_records_its_steps(data, tmp_path, monkeypatch):
    """Steps of one second, of which 60 s allow 11 + (60 - 11) / 2."""
    clock, original = [0.0], Denoising.train_step
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr("zoo.cli.command_line.time", SimpleNamespace(monotonic=lambda: 0.0))

    def slow_step(self, *args):
        clock[0] += 1
        return original(self, *args)

    monkeypatch.setattr(Denoising, "train_step", slow_step)
    run = tmp_path / "run"
    cli = fit(data, run, "--budget=1min", "--model.pretrain_steps=500")
    assert clock[0] == cli.model.hparams["pretrain_steps"] == 35
    assert "pretrain_steps: 35\n" in (run / "config.yaml").read_text()
    assert progress(run) == (35, 6)


def test_a_model_that_does_not_pretrain_refuses_unlabelled_texts(data, tmp_path, capsys):
    options = ["--data=TextRegression", f"--data_dir={data / 'rows.csv'}", "--data.target_columns=y"]
    options += [f"--data.unlabelled={data}", "--trainer.max_steps=1", f"--output_dir={tmp_path / 'run'}"]
    message = complaint(capsys, 1, "fit", "--model=MiniRLM", *options)
    assert "--data.unlabelled has no effect on MiniRLM" in message


# ---- reading


def test_unlabelled_texts_of_all_formats(data):
    folder = data / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("one\r\n\r\n  two  \n")
    (folder / "b.csv").write_text('text,z\n"three, four",1\n')
    (folder / "c.jsonl").write_text('{"text": "five"}\n{"text": "six"}\n')
    (folder / "test.md").write_text("seven\ntwo\n")
    (folder / "notes.pdf").write_text("not read")
    rows = TextRegression(data=str(data / "rows.csv"), target_columns="y", unlabelled=str(folder), tokenizer="words")
    expected = ["one", "two", "three, four", "five", "six", "seven"]
    training = rows.reader.rows("train").texts
    assert rows.source.unlabelled == list(dict.fromkeys(expected + training))
    ids = rows.unlabelled_texts.read()
    assert [rows.tokenizer.decode(text) for text in ids[:2]] == ["one", "two"]
    assert TextRegression(data=str(data / "rows.csv"), target_columns="y").unlabelled_texts is None


def test_unlabelled_rows_of_tables_become_texts_as_training_rows_do(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b,y\n" + "1.234,x,2\n" * 9)
    (tmp_path / "more.csv").write_text("b,a\nz,5.678\n")
    settings = {"target_columns": "y", "round_digits": 2, "unlabelled": str(tmp_path / "more.csv")}
    rows = TextRegression(data=str(tmp_path / "rows.csv"), **settings)
    assert rows.source.unlabelled[0] == "a: 5.678, b: z"
    assert rows.tokenizer.decode(rows.unlabelled_texts.read()[0]) == "a: 5.7, b: z"
