"""The table of scores and baselines that `zoo validate` and `zoo test` print."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.commands import fit
from zoo.__main__ import main
from zoo.cli.score_table import ScoreTable, by_metric
from zoo.datamodules import TextLM, TextRegression
from zoo.errors import UserError


def test_a_baseline_belongs_to_the_metric_with_the_longest_name():
    metrics = ["val_mse", "val_pretrain_mse", "val_mse_log"]
    baselines = {"pretrain_mse_ridge": 1.0, "mse_zero": 2.0, "mse_log_most_frequent": 3.0, "mae_median": 4.0}
    assert by_metric(metrics, baselines) == {
        "val_pretrain_mse": {"ridge": 1.0}, "val_mse": {"zero": 2.0}, "val_mse_log": {"most frequent": 3.0}
    }  # fmt: skip


def run_of(split, data, verb="test"):
    Regressor = type("Regressor", (), {})
    trainer = SimpleNamespace(
        is_global_zero=True, fast_dev_run=False, state=SimpleNamespace(fn=verb), datamodule=data,
        callback_metrics={f"{split}_mae": torch.tensor(0.123456789), f"{split}_r2": torch.tensor(0.5)},
    )  # fmt: skip
    return trainer, Regressor()


def test_test_scores_have_five_digits_and_the_baselines_of_the_test_rows(capsys):
    targets = {"train": np.array([[1.0], [2.0], [9.0]]), "val": np.zeros((1, 1)), "test": np.array([[0.0], [5.0]])}
    ScoreTable().on_test_end(*run_of("test", SimpleNamespace(targets=targets.get)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["metric", "score", "baselines"]
    assert [line.split() for line in lines[2:]] == [["test_mae", "0.12346", "median", "2.5"], ["test_r2", "0.5"]]


def test_data_without_training_rows_has_no_baselines(capsys):
    def targets(split):
        raise UserError("no training rows")

    ScoreTable().on_test_end(*run_of("test", SimpleNamespace(targets=targets)))
    assert capsys.readouterr().out.splitlines()[0].split() == ["metric", "score"]


def test_a_validation_within_a_fit_prints_nothing(capsys):
    ScoreTable().on_validation_end(*run_of("val", SimpleNamespace(), verb="fit"))
    assert capsys.readouterr().out == ""


def test_fit_and_test_print_the_same_baselines(tmp_path, text_file, capsys):
    assert fit(tmp_path / "run", text_file) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"next: zoo test --ckpt_path {tmp_path / 'run' / 'best.ckpt'}"
    words = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=2"]
    assert main(["validate", f"--ckpt_path={tmp_path / 'run' / 'best.ckpt'}", *words]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("val_loss ")]
    baselines = said[-2].partition("(")[2].removesuffix(")")
    assert baselines.startswith("unigram ")
    assert row.endswith(f"  {baselines}")
    assert main(["validate", f"--ckpt_path={tmp_path / 'run' / 'best.ckpt'}", "--verbose=false", *words]) == 0
    assert capsys.readouterr().out == ""


def test_splits_of_data(tmp_path):
    rows = "x,y\n" + "".join(f"{i},{i}\n" for i in range(20))
    (tmp_path / "all.csv").write_text(rows)
    for name in ("train", "val"):
        (tmp_path / "two").mkdir(exist_ok=True)
        (tmp_path / "two" / f"{name}.csv").write_text(rows)
        (tmp_path / "two" / f"{name}.txt").write_text("some words\n" * 20)
    table = TextRegression(str(tmp_path / "all.csv"), target_columns="y")
    assert [table.has_split(split) for split in ("train", "val", "test")] == [True, True, True]
    assert not TextRegression(str(tmp_path / "all.csv"), target_columns="y", test_fraction=0.0).has_split("test")
    assert not TextRegression(str(tmp_path / "two"), target_columns="y").has_split("test")


@pytest.mark.parametrize(("n_bytes", "is_quick"), [(1 << 8, True), ((1 << 24) + (1 << 22), False)])
def test_baselines_of_a_long_text_are_left_out_unless_it_is_packed(n_bytes, is_quick, tmp_path, monkeypatch):
    file = tmp_path / "text.txt"
    with file.open("wb") as content:
        content.write(b"words\n" * 20)
        content.truncate(n_bytes)
    data = TextLM(str(file), cache_dir=str(tmp_path / "cache"))
    assert data.is_quickly_read("train") is is_quick
    assert not data.is_quickly_read("other")
