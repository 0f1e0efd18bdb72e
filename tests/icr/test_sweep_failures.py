"""A sweep with members that fail, signals, locked members, and wrong options."""

import argparse
import fcntl
import json
import os
import signal

import pytest
import torch

from tests.icr.test_sweep import assert_close, kill_at, sweep, sweep_module
from zoo.console.exit_codes import run_command
from zoo.files.checkpoints import read_checkpoint
from zoo.icr.sweep import training
from zoo.icr.sweep.options import share
from zoo.icr.sweep.stacked_data import StackedTasks
from zoo.icr.sweep.stacked_model import StackedICR
from zoo.icr.task import Prompts


def test_member_with_nan_loss_is_reported_and_the_others_continue(tmp_path, monkeypatch, capsys):
    sweep(tmp_path / "without", tasks="2,inf")
    draw = StackedTasks.draw

    def poisoned(self, step):
        prompts = draw(self, step)
        if step >= 30 and 8 in self.members:
            prompts.y[self.members.index(8)] = torch.nan
        return prompts

    monkeypatch.setattr(StackedTasks, "draw", poisoned)
    assert run_command(lambda: sweep(tmp_path / "with")) == 1
    told = capsys.readouterr().err
    assert "M 8 failed: the loss is no longer finite" in told
    assert "1 of 3 members have not ended, M 8 (failed): see" in told
    members = json.loads((tmp_path / "with" / "experiment_metadata.json").read_text())["members"]
    assert [members[M]["status"] for M in ("2", "8", "inf")] == ["done", "failed", "done"]
    assert_close(tmp_path / "without", tmp_path / "with", 2, "inf", atol=1e-5)
    monkeypatch.undo()
    assert sweep(tmp_path / "with")["8"]["status"] == "done"  # a second call retries it


def test_stack_that_raises_does_not_stop_the_next(tmp_path, monkeypatch):
    evaluation = StackedTasks._evaluation

    def broken(self, split):
        if 8 in self.members:
            raise RuntimeError("out of memory\nand more")
        return evaluation(self, split)

    monkeypatch.setattr(StackedTasks, "_evaluation", broken)
    assert run_command(lambda: sweep(tmp_path, stack=1)) == 1
    members = json.loads((tmp_path / "experiment_metadata.json").read_text())["members"]
    assert [members[M]["status"] for M in ("2", "8", "inf")] == ["done", "failed", "done"]
    assert members["8"]["error"].startswith("RuntimeError: out of memory")


@pytest.mark.parametrize(
    "options",
    [
        {"tasks": "2,many"}, {"share": "3/2"}, {"num_steps": 0}, {"seed": "x"}, {"stack": -1}, {"grad_clip": 0},
        {"learning_rate": 0}, {"early_stopping_patience": 0}, {"early_stopping_min_delta": -1},
        {"processes": 2, "share": "1/2"},
    ],
)  # fmt: skip
def test_usage_errors(options, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: sweep(tmp_path / "new", **options))
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("zoo: ")
    assert f"--{next(iter(options))}" in line
    assert not (tmp_path / "new").exists()


def test_damaged_metadata_is_named(tmp_path, capsys):
    (tmp_path / "experiment_metadata.json").write_text("{")
    assert run_command(lambda: sweep(tmp_path)) == 1
    assert "experiment_metadata.json is damaged" in capsys.readouterr().err


def test_kill_between_evaluations_loses_at_most_checkpoint_every_steps(tmp_path, monkeypatch):
    kill_at(monkeypatch, 50)
    assert run_command(lambda: sweep(tmp_path, tasks="2", eval_every=60, checkpoint_every=15)) == 130
    assert read_checkpoint(str(tmp_path / "checkpoints_M2" / "last.ckpt"))["global_step"] == 45


def test_signal_at_the_last_step_is_obeyed_after_the_evaluation(tmp_path, monkeypatch):
    """Otherwise a member would have finished its steps without an evaluation."""
    training_step = StackedICR.training_step

    def step_with_signal(self, batch, batch_idx):
        if self.global_step == 59:
            os.kill(os.getpid(), signal.SIGINT)
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(StackedICR, "training_step", step_with_signal)
    assert run_command(lambda: sweep(tmp_path, tasks="2")) in (0, 130)
    member = json.loads((tmp_path / "experiment_metadata.json").read_text())["members"]["2"]
    assert member["status"] == "done"
    assert member["val_true_mse"] > 0
    assert (tmp_path / "checkpoints_M2" / "checkpoint_step_60.ckpt").exists()


def test_status_of_members_that_run_are_stopped_and_are_killed(tmp_path, monkeypatch, capsys):
    training_step, seen = StackedICR.training_step, {}

    def states() -> dict[str, tuple[str, int]]:
        members = json.loads((tmp_path / "experiment_metadata.json").read_text())["members"]
        for M, of in members.items():
            if (path := tmp_path / f"checkpoints_M{M}" / "status.json").exists():
                assert json.loads(path.read_text()) == of
        return {M: (of["status"], of["step"]) for M, of in members.items()}

    def step_with_signal(self, batch, batch_idx):
        seen.setdefault(self.global_step, states())
        if self.global_step == 45:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(StackedICR, "training_step", step_with_signal)
    assert run_command(lambda: sweep(tmp_path, tasks="2,8", stack=1)) == 143
    # SIGKILL at one of these steps would leave these states.
    assert [seen[step]["2"] for step in (0, 19, 20, 31, 45)] == [("running", n) for n in (0, 0, 20, 30, 40)]
    assert states() == {"2": ("stopped", 46), "8": ("waiting", 0)}
    # --collect shows them.
    assert run_command(lambda: sweep_module.main(["--collect", f"--output_dir={tmp_path}"])) == 1
    assert "M 2 (stopped), 8 (waiting)" in capsys.readouterr().err
    # A killed member waits until its turn, and a failure has the step of the last checkpoint.
    status = tmp_path / "checkpoints_M2" / "status.json"
    status.write_text(status.read_text().replace("stopped", "running"))

    def failing_step(self, batch, batch_idx):
        seen[-1] = states()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(StackedICR, "training_step", failing_step)
    assert run_command(lambda: sweep(tmp_path, tasks="8,2", stack=1)) == 1
    assert states() == {"2": ("failed", 46), "8": ("failed", 0)}


def test_nonfinite_evaluation_removes_only_its_member(tmp_path, monkeypatch, capsys):
    step = StackedICR.validation_step

    def poisoned(self, batch, batch_idx):
        step(self, batch, batch_idx)
        if self.global_step == 40 and 8 in self.members:
            for metric in self.errors.values():
                metric.sums[:, self.members.index(8)] = torch.nan

    monkeypatch.setattr(StackedICR, "validation_step", poisoned)
    assert run_command(lambda: sweep(tmp_path)) == 1
    assert "M 8 failed: the error is no longer finite" in capsys.readouterr().err
    members = json.loads((tmp_path / "experiment_metadata.json").read_text())["members"]
    assert [members[M]["status"] for M in ("2", "8", "inf")] == ["done", "failed", "done"]


def test_all_members_fail(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DEBUG", "1")  # raises any other error
    monkeypatch.setattr(StackedTasks, "draw", lambda self, step: draw_nan(self))

    def draw_nan(data):
        x = torch.zeros(8, 4, 2)
        return Prompts(x, torch.full((len(data.members), 8, 4), torch.nan), torch.zeros(len(data.members), 8, 2))

    with pytest.raises(ValueError, match="3 of 3 members have not ended"):
        run_command(lambda: sweep(tmp_path))


def test_member_locked_by_another_process_is_skipped(tmp_path, capsys):
    folder = tmp_path / "checkpoints_M8"
    folder.mkdir()
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run_command(lambda: sweep(tmp_path)) == 1
    told = capsys.readouterr().err
    assert "another process trains M 8" in told
    assert "1 of 3 members have not ended, M 8 (waiting)" in told


def test_exit_code_of_a_share_depends_on_its_own_members(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "train_stack", lambda members, *_: (_ for _ in ()).throw(RuntimeError("broken")))
    assert run_command(lambda: sweep(tmp_path, share="2/2")) == 1  # 8, which failed
    monkeypatch.undo()
    assert run_command(lambda: sweep(tmp_path, share="1/2")) == 0  # 2 and inf


def test_a_share_without_members_ends_well(tmp_path, capsys):
    assert run_command(lambda: sweep(tmp_path, share="4/9")) == 0  # of 2, 8 and inf
    assert capsys.readouterr().out == "zoo: share 4/9 has no members: the sweep has only 3\n"


@pytest.mark.parametrize("text", ["3/2", "0/2", "1", "a/b", "1/2/3", ""])
def test_a_wrong_share_is_told_the_form(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a share: write I/N, where I is from 1 to N"):
        share(text)
