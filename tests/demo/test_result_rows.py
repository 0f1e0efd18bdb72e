"""The demo: its rows and their notes, its time left, and the output of a run."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zoo.console.progress_text import format_seconds
from zoo.demo.__main__ import main
from zoo.demo.result_rows import result_row
from zoo.demo.time_left import DemoProgress, TimeLeft
from zoo.text_formats.json_text import dump_json


class LanguageModel:
    pass


class Mine(LanguageModel):
    pass


class Regressor:
    pass


class ICRTransformer:
    pass


class Other:
    pass


def metrics(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def test_the_row_is_that_of_a_base_class():
    tokens = np.arange(300) % 7
    data = SimpleNamespace(tokens=lambda split: tokens, vocab_size=7, batch_size=2, seq_len=10)
    row = result_row(Mine(), data, metrics(val_loss=1.5), steps=30)
    assert row["metric"] == "val nats/token 1.500"
    assert "unigram 1.9" in row["baseline"]
    assert row["note"] == (
        "worse than the trigram, which counts all 300 tokens of the training text; the model has read 600 tokens in "
        "its 30 steps"
    )
    assert "worse than the trigram" in result_row(Mine(), data, metrics(val_loss=2.5), steps=30)["note"]
    assert "note" not in result_row(Mine(), data, metrics(val_loss=0.0), steps=30)
    targets = {"train": np.array([[1.0], [2.0], [9.0]]), "val": np.array([[2.0], [4.0]])}
    data = SimpleNamespace(targets=targets.get)
    row = result_row(Regressor(), data, metrics(val_mae=0.5, val_spearman=0.25), steps=30)
    assert row == {"metric": "val MAE 0.5, Spearman 0.250", "baseline": "median's MAE 1"}
    row = result_row(Regressor(), data, metrics(val_mae=1.5, val_spearman=0.25), steps=30)
    assert row["note"].startswith("no better than predicting the median: it was trained for 30 steps only")


def test_a_pool_of_few_tasks_is_explained():
    answers = SimpleNamespace(answers=dict.fromkeys(("ridge", "dmmse"), torch.ones(4)))  # mean square 1, of D = 2
    evaluation = SimpleNamespace(true=answers, pretrain=answers)
    distances = metrics(val_true_to_ridge=3.0, val_pretrain_to_dmmse=0.1)
    data = SimpleNamespace(D=2, M=4, evaluation=lambda split: evaluation)
    row = result_row(ICRTransformer(), data, distances, steps=30)
    assert row["metric"] == "M = 4: 1.500 from ridge on new tasks, 0.050 from dMMSE on its pool"
    assert row["note"].startswith("worse than predicting 0 on new tasks, as expected: it was trained on 4 tasks only")
    data.M = "inf"
    row = result_row(ICRTransformer(), data, metrics(val_true_to_ridge=3.0), steps=30)
    assert row["note"].startswith("no better than predicting 0: it was trained for 30 steps only")


def test_a_model_without_a_row_shows_its_validation_loss():
    assert result_row(Other(), None, metrics(val_loss=2.0), 30) == {"metric": "val_loss 2", "baseline": ""}
    assert result_row(Other(), None, {}, 30)["metric"] == ""


def test_time_left_follows_the_speed_of_the_models_before():
    now = [100.0]
    time_left = TimeLeft(["tiny/icr", "my/other.yaml", "tiny/icr"], lambda: now[0])
    one, other, _ = time_left.expected
    assert time_left.seconds(0, 0.0) is None
    now[0] += one  # half as fast as expected
    assert time_left.seconds(0, 0.5) == pytest.approx(2 * (one / 2 + other + one))
    assert time_left.seconds(2, 1.0) == 0.0
    line = DemoProgress("model 1 of 3", 0, time_left)
    assert line.line_label(None) == "model 1 of 3"
    assert line.line_label(0.5) == f"model 1 of 3, {format_seconds(2 * (one / 2 + other + one))} left for all"


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
def test_rows_are_printed_when_they_are_ready(tmp_path, monkeypatch, capsys):
    config = tmp_path / "micro.yaml"
    options = {"max_steps": 2, "val_check_interval": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    config.write_text(
        "model: {class_path: ICRTransformer, init_args: {d_model: 8, d_mlp: 8, n_heads: 1, n_layers: 1}}\n"
        "data: {class_path: LinearRegressionTasks, init_args: {D: 2, K: 3, M: inf, batch_size: 4, n_val: 16}}\n"
        f"trainer: {dump_json(options | {'accelerator': 'cpu', 'check_val_every_n_epoch': None})}\n"
    )
    out = tmp_path / "runs"
    monkeypatch.setattr(sys, "argv", ["demo", f"--output_dir={out}", str(config)])
    main()
    printed, err = capsys.readouterr()
    row = printed.splitlines()
    assert row[0].startswith("model 1 of 1: ICRTransformer, ")
    assert row[1].startswith("  M = inf: ")
    assert row[2].startswith("  baseline: predicting 0: ")
    assert "model 1 of 1, " in err
    assert "ICRTransformer: no better than predicting 0" in printed
    assert "step 2 of 2, 100 %" in err
