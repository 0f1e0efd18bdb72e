"""The demo: its rows and their notes, its time left, and the output of a run."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from zoo.console.progress_text import format_seconds
from zoo.demo import processes, schedule
from zoo.demo.__main__ import main
from zoo.demo.processes import run_in_processes
from zoo.demo.result_rows import result_row
from zoo.demo.schedule import Schedule
from zoo.demo.time_left import DemoProgress, TimeLeft
from zoo.errors import UserError
from zoo.text_formats.json_text import dump_json


class LanguageModel:
    pass


class Mine(LanguageModel):
    pass


class Regressor:
    pass


class ICRTransformer:
    pass


class TextClassifier:
    pass


class Other:
    pass


def metrics(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def test_the_row_is_that_of_a_base_class():
    tokens = np.arange(300) % 7
    data = SimpleNamespace(tokens=lambda split: tokens, vocab_size=7, batch_size=2, seq_len=10)
    scores = {"loss_unigram": 1.9, "ppl_unigram": 6.7, "loss_trigram": 0.9}
    row = result_row(Mine(), data, metrics(val_loss=1.5), scores, steps=30)
    assert row["metric"] == "val nats/token 1.500"
    assert row["baseline"] == "unigram 1.900, Kneser-Ney trigram 0.900"
    assert row["note"] == (
        "worse than the trigram, which counts all 300 tokens of the training text; the model has read 600 tokens in "
        "its 30 steps"
    )
    assert "worse than the trigram" in result_row(Mine(), data, metrics(val_loss=2.5), scores, steps=30)["note"]
    assert "note" not in result_row(Mine(), data, metrics(val_loss=0.0), scores, steps=30)
    data = SimpleNamespace()
    row = result_row(Regressor(), data, metrics(val_mae=0.5, val_spearman=0.25), {"mae_median": 1.0}, steps=30)
    assert row == {"metric": "val MAE 0.5, Spearman 0.250", "baseline": "median's MAE 1"}
    row = result_row(Regressor(), data, metrics(val_mae=1.5, val_spearman=0.25), {"mae_median": 1.0}, steps=30)
    assert row["note"].startswith("no better than predicting the median: it was trained for 30 steps only")

    scores = {"accuracy_most_frequent": 0.5, "accuracy_bag_of_words": 0.75}
    row = result_row(TextClassifier(), data, metrics(val_accuracy=0.6), scores, steps=30)
    assert row["baseline"] == "most frequent class 0.500, naive Bayes on words and pairs of words 0.750"
    assert row["note"].startswith("worse than naive Bayes on words and pairs of words: it was trained for 30 steps")


def test_without_baselines_a_row_has_its_metric():
    data = SimpleNamespace(D=2, M=4)
    for model, values in (
        (Mine(), {"val_loss": 1.5}),
        (Regressor(), {"val_mae": 1.0, "val_spearman": 0.5}),
        (TextClassifier(), {"val_accuracy": 0.5}),
    ):
        row = result_row(model, data, metrics(**values), {}, steps=30)
        assert row["metric"]
        assert row["baseline"] == ""
        assert "note" not in row


def test_a_pool_of_few_tasks_is_explained():
    zero = {"true_to_ridge_zero": 1.0, "pretrain_to_dmmse_zero": 1.0}
    distances = metrics(val_true_to_ridge=3.0, val_pretrain_to_dmmse=0.1)
    data = SimpleNamespace(D=2, M=4)
    row = result_row(ICRTransformer(), data, distances, zero, steps=30)
    assert row["metric"] == "M = 4: 1.500 from ridge on new tasks, 0.050 from dMMSE on its pool"
    assert row["baseline"] == "predicting 0: 0.500, 0.500"
    assert row["note"].startswith("worse than predicting 0 on new tasks, as expected: it was trained on 4 tasks only")
    data.M = "inf"
    row = result_row(ICRTransformer(), data, metrics(val_true_to_ridge=3.0), zero, steps=30)
    assert row["note"].startswith("no better than predicting 0: it was trained for 30 steps only")


def test_a_model_without_a_row_shows_its_validation_loss():
    assert result_row(Other(), None, metrics(val_loss=2.0), {}, 30) == {"metric": "val_loss 2", "baseline": ""}
    assert result_row(Other(), None, {}, {}, 30)["metric"] == ""


def test_time_left_follows_the_speed_of_the_models_before():
    now = [100.0]
    in_order = Schedule(["tiny/icr", "my/other.yaml", "tiny/icr"], 1)
    time_left = TimeLeft(in_order, 100.0, lambda: now[0])
    one, other, _ = in_order.expected
    assert time_left.seconds(0, 0.0) is None
    now[0] += one  # half as fast as expected
    assert time_left.seconds(0, 0.5) == pytest.approx(2 * (one / 2 + other + one))
    assert time_left.seconds(2, 1.0) == 0.0
    line = DemoProgress("model 1 of 3", 0, time_left)
    assert line.line_label(None) == "model 1 of 3"
    assert line.line_label(0.5) == f"model 1 of 3, {format_seconds(2 * (one / 2 + other + one))} left for all"


def test_long_models_start_first_where_several_are_trained_at_a_time(monkeypatch):
    monkeypatch.setattr(schedule, "SECONDS", {"mini_rlm": 9, "icr": 50, "llama": 53, "revdeq": 48})
    configs = ["tiny/mini_rlm", "tiny/icr", "tiny/llama", "tiny/revdeq"]
    two = Schedule(configs, 2)
    assert two.configs == ["tiny/llama", "tiny/icr", "tiny/revdeq", "tiny/mini_rlm"]
    assert Schedule(two.configs, 2).configs == two.configs
    assert two.starts == [0, 0, 50, 53]
    assert two.end == 50 + 48
    assert Schedule(configs, 1).configs == configs
    assert TimeLeft(two, 100.0, lambda: 150.0).seconds(2, 0.0) == pytest.approx(48)  # as fast as expected


class FakeProcess:
    """A process of the demo that writes its row at its third poll, or fails."""

    codes: ClassVar[dict[str, int]] = {}
    started: ClassVar[list["FakeProcess"]] = []
    most = 0

    def __init__(self, command, env):
        options = dict(word.removeprefix("--").split("=", 1) for word in command if "=" in word)
        configs = command[command.index("--") + 1 :]
        self.config, self.row, self.env = configs[int(options["place"])], options["row"], env
        self.polls, self.returncode, self.is_terminated = 0, None, False
        FakeProcess.started.append(self)
        FakeProcess.most = max(FakeProcess.most, sum(child.returncode is None for child in FakeProcess.started))

    def poll(self):
        self.polls += 1
        if self.polls == 3:
            self.returncode = self.codes.get(self.config, 0)
            Path(self.row).write_text(dump_json({"model": self.config}))
        return self.returncode

    def terminate(self):
        self.is_terminated = True

    def wait(self):
        self.returncode = self.returncode or 143


@pytest.fixture
def fake_processes(monkeypatch):
    monkeypatch.setattr(processes.subprocess, "Popen", FakeProcess)
    monkeypatch.setattr(processes.time, "sleep", lambda seconds: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(FakeProcess, "started", [])
    monkeypatch.setattr(FakeProcess, "most", 0)
    return FakeProcess


def test_two_models_are_trained_at_a_time_with_one_thread_each(fake_processes, tmp_path, monkeypatch):
    configs = ["tiny/llama", "tiny/icr", "tiny/revdeq"]
    rows = run_in_processes(Schedule(configs, 2), 2, tmp_path, 0.0)
    assert rows == {config: {"model": config} for config in configs}
    assert fake_processes.most == 2
    assert {child.env["OMP_NUM_THREADS"] for child in fake_processes.started} == {"1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run_in_processes(Schedule(configs[:1], 2), 2, tmp_path, 0.0)
    assert fake_processes.started[-1].env["OMP_NUM_THREADS"] == "3"


def test_the_demo_ends_when_a_model_fails(fake_processes, tmp_path, monkeypatch):
    configs = ["tiny/llama", "tiny/icr", "tiny/revdeq"]
    monkeypatch.setattr(FakeProcess, "codes", {"tiny/llama": 2})
    with pytest.raises(SystemExit) as stop:
        run_in_processes(Schedule(configs, 2), 2, tmp_path, 0.0)
    assert stop.value.code == 2
    assert [child.is_terminated for child in fake_processes.started] == [False, True]  # the third was not started
    monkeypatch.setattr(FakeProcess, "codes", {"tiny/llama": -9})
    with pytest.raises(UserError, match="trained tiny/llama was ended by SIGKILL; if memory is short, use --proc"):
        run_in_processes(Schedule(configs, 2), 2, tmp_path, 0.0)


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
