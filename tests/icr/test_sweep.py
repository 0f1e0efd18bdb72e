"""The sweep: each member equals its single run, for any stacking, any division among processes, and after resuming."""

import argparse
import fcntl
import json
import os
import re
import signal
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.resume import train
from zoo.__main__ import main
from zoo.console.exit_codes import run_command
from zoo.datamodules import LinearRegressionTasks
from zoo.files.checkpoints import read_checkpoint
from zoo.icr import ICRegConfig, ICRTransformer, load_model
from zoo.icr.sweep import __main__ as sweep_module
from zoo.icr.sweep import training
from zoo.icr.sweep.options import share
from zoo.icr.sweep.stacked_data import StackedTasks
from zoo.icr.sweep.stacked_model import StackedICR
from zoo.icr.task import Prompts

SIZES = {"D": 2, "K": 4, "d_model": 8, "d_mlp": 16, "n_heads": 2, "n_layers": 2}
TRAINING = {"num_steps": 60, "eval_every": 20, "checkpoint_every": 30, "batch_size": 8, "warmup_steps": 25, "n_val": 16}
HARD = {"learning_rate": 0.003, "grad_clip": 0.2}  # most gradients are clipped


def sweep(folder: Path, tasks: str = "2,8,inf", **settings: object) -> dict[str, dict]:
    """Run a sweep in this process; returns what its metadata says of the members."""
    options = SIZES | TRAINING | HARD | {"tasks": tasks, "output_dir": folder, "accelerator": "cpu"} | settings
    sweep_module.main([f"--{name}={value}" for name, value in options.items()])
    return json.loads((folder / "experiment_metadata.json").read_text())["members"]


def weights(folder: Path, M: int | str, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return read_checkpoint(str(folder / f"checkpoints_M{M}" / name))["state_dict"]


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Raise KeyboardInterrupt in the training step that follows `step` finished ones."""
    training_step = StackedICR.training_step

    def killed(self, batch, batch_idx):
        if self.global_step >= step:
            raise KeyboardInterrupt
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(StackedICR, "training_step", killed)


def assert_close(folder: Path, other: Path, *members: int | str, atol: float = 1e-4) -> None:
    for M in members:
        expected = weights(folder, M)
        for name, tensor in weights(other, M).items():
            torch.testing.assert_close(tensor, expected[name], atol=atol, rtol=0, msg=f"M {M}: {name}")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished sweep of three members in one stack."""
    folder = tmp_path_factory.mktemp("sweep")
    assert {of["status"] for of in sweep(folder).values()} == {"done"}
    return folder


@pytest.mark.parametrize("M", [2, 8, "inf"])
def test_a_member_equals_its_own_single_run(finished, M, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    settings = {name: TRAINING[name] for name in ("warmup_steps",)} | SIZES
    task = {name: SIZES[name] for name in ("D", "K")} | {"M": M, "batch_size": 8}

    def single(**options) -> dict[str, torch.Tensor]:
        module = ICRTransformer(lr=HARD["learning_rate"], **settings, **options)
        return train(module, LinearRegressionTasks(**task), tmp_path, max_steps=60, limit_val_batches=0)

    expected = single(grad_clip=HARD["grad_clip"])
    for name, tensor in weights(finished, M).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=0)
    unclipped = single(grad_clip=None)
    assert any((unclipped[name] - expected[name]).abs().max() > 1e-3 for name in expected), "clipping was not active"


def test_members_share_initial_weights_x_and_noise_and_differ_in_their_pools(finished):
    two, eight = weights(finished, 2), weights(finished, 8)
    assert any(not torch.equal(two[name], eight[name]) for name in two)
    start = [StackedICR([2, 8], config=ICRegConfig(**SIZES)), ICRTransformer(**SIZES)]
    stacked, single = (dict(module.model.named_parameters()) for module in start)
    for name, tensor in stacked.items():
        assert torch.equal(tensor[0], tensor[1])
        assert torch.equal(tensor[0], single[name])
    x, y, w = StackedTasks([2, 8], D=2, K=4, batch_size=8).draw(3)
    for place, M in enumerate((2, 8)):
        alone = LinearRegressionTasks(D=2, K=4, M=M, batch_size=8).draw(3)
        assert torch.equal(alone.x, x)
        assert torch.equal(alone.y, y[place])
        assert torch.equal(alone.w, w[place])


@pytest.mark.slow
def test_training_one_by_one_and_in_shares_gives_the_same_members(finished, tmp_path):
    sweep(tmp_path / "single", stack=1)
    assert_close(finished, tmp_path / "single", 2, 8, "inf")
    first = sweep(tmp_path / "shared", share="1/2")
    assert [first[M]["status"] for M in ("2", "8", "inf")] == ["done", "waiting", "done"]
    second = sweep(tmp_path / "shared", share="2/2")
    assert {of["status"] for of in second.values()} == {"done"}
    assert_close(finished, tmp_path / "shared", 2, 8, "inf")


@pytest.mark.slow
def test_two_processes_give_the_same_members_as_one(finished, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    reached = sweep(tmp_path, processes=2)
    assert {of["status"] for of in reached.values()} == {"done"}
    assert_close(finished, tmp_path, 2, 8, "inf")


@pytest.mark.parametrize("stack", [0, 2])
def test_killed_sweep_resumes(finished, stack, tmp_path, monkeypatch):
    """Killed twice between two checkpoints, then resumed with another stacking."""
    for killed_at in (30, 50):  # with --stack 2 the third member is not yet begun
        kill_at(monkeypatch, killed_at)
        assert run_command(lambda: sweep(tmp_path, stack=stack)) == 130
        monkeypatch.undo()
        statuses = json.loads((tmp_path / "experiment_metadata.json").read_text())["members"]
        assert statuses["2"]["status"] == "running"
    assert read_checkpoint(str(tmp_path / "checkpoints_M2" / "last.ckpt"))["global_step"] == 40
    reached = sweep(tmp_path, stack=0)
    assert {of["status"] for of in reached.values()} == {"done"}
    assert_close(finished, tmp_path, 2, 8, "inf", atol=1e-6)
    for M in (2, 8, "inf"):
        assert {p.name for p in (tmp_path / f"checkpoints_M{M}").glob("*.ckpt")} == {
            "best.ckpt", "last.ckpt", "checkpoint_step_30.ckpt", "checkpoint_step_60.ckpt",
        }  # fmt: skip


def test_resumed_stack_is_bitwise_equal(finished, tmp_path, monkeypatch):
    kill_at(monkeypatch, 50)
    assert run_command(lambda: sweep(tmp_path)) == 130
    monkeypatch.undo()
    sweep(tmp_path)
    assert_close(finished, tmp_path, 2, 8, "inf", atol=0)


def test_finished_members_are_not_retrained_and_members_can_be_added(tmp_path, capsys):
    sweep(tmp_path, tasks="2")
    before = (tmp_path / "checkpoints_M2" / "last.ckpt").stat().st_mtime_ns
    reached = sweep(tmp_path, tasks="2,4")
    assert (tmp_path / "checkpoints_M2" / "last.ckpt").stat().st_mtime_ns == before
    assert list(reached) == ["2", "4"]
    out, err = capsys.readouterr()
    assert "true_to_ridge" in out
    assert re.search(r"^member 1 of 1, M 4: step 60 of 60, 100 %, .*, train_loss \S+, val_loss \S+$", err, re.MULTILINE)


def test_the_progress_line_names_the_members():
    assert training.stack_label([8], 2, 10) == "member 3 of 10, M 8"
    assert training.stack_label([2, 8, "inf"], 0, 3) == "members 1 to 3 of 3, M 2, 8, inf"
    powers = [2**power for power in range(1, 11)]
    assert training.stack_label(powers, 0, 10) == "members 1 to 10 of 10, M 2, 4, 8, ..., 1024"


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
    evaluation = StackedTasks.evaluation

    def broken(self, split):
        if 8 in self.members:
            raise RuntimeError("out of memory\nand more")
        return evaluation(self, split)

    monkeypatch.setattr(StackedTasks, "evaluation", broken)
    assert run_command(lambda: sweep(tmp_path, stack=1)) == 1
    members = json.loads((tmp_path / "experiment_metadata.json").read_text())["members"]
    assert [members[M]["status"] for M in ("2", "8", "inf")] == ["done", "failed", "done"]
    assert members["8"]["error"].startswith("RuntimeError: out of memory")


def test_early_stopping_acts_on_single_members(finished, tmp_path):
    """A min_delta between the members' decreases in error stops the slowest and does not change the others."""
    losses = {}
    for M in ("2", "8", "inf"):
        events = EventAccumulator(str(finished / f"checkpoints_M{M}")).Reload().Scalars("val/loss")
        losses[M] = [event.value for event in events]
        assert [event.step for event in events] == [20, 40, 60]
    falls = {M: first - second for M, (first, second, _) in losses.items()}
    slow, middle, _ = sorted(falls, key=falls.__getitem__)
    delta = (falls[slow] + falls[middle]) / 2
    reached = sweep(tmp_path, early_stopping_patience=1, early_stopping_min_delta=delta)
    assert (reached[slow]["status"], reached[slow]["step"]) == ("stopped early", 40)
    assert (tmp_path / f"checkpoints_M{slow}" / "checkpoint_step_40.ckpt").exists()
    going_on = [M for M in falls if slow != M]
    assert {reached[M]["status"] for M in going_on} <= {"done"}
    assert_close(finished, tmp_path, *going_on, atol=1e-5)


def test_metadata_is_written_before_training(tmp_path, monkeypatch):
    seen = {}

    def look(members, step, args, report, label):
        seen.update(json.loads((tmp_path / "experiment_metadata.json").read_text()))
        for M in members:
            report(M, "done", step=60)

    monkeypatch.setattr(training, "train_stack", look)
    sweep(tmp_path)
    assert {of["status"] for of in seen["members"].values()} == {"waiting"}
    assert seen["settings"]["batch_size"] == 8
    assert seen["settings"]["D"] == 2


def test_member_checkpoint_can_be_validated_by_the_command_line(finished, tmp_path, capsys):
    path = finished / "checkpoints_M8" / "checkpoint_step_60.ckpt"
    model = load_model(str(path))
    assert (model.config.M, model.config.D, model.config.K) == (8, 2, 4)
    score = json.loads((finished / "experiment_metadata.json").read_text())["members"]["8"]["val_true_mse"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    assert main(["validate", f"--ckpt_path={path}", f"--output_dir={tmp_path}", *quiet]) == 0
    shown = re.search(r"val_true_mse\W+([\d.]+)", capsys.readouterr().out)
    assert float(shown[1]) == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tasks": "0"}, 'M must be a number of tasks, at least 1, or "inf", not 0'),
        ({"tasks": "-2"}, "at least 1"),
        ({"K": 1}, "K must be at least 2"),
        ({"sigma2": 0}, "sigma2, the variance of the noise, must be positive"),
        ({"n_heads": 3}, "d_model 8 is not a multiple of n_heads 3"),
        ({"batch_size": 16}, "is a sweep with batch_size 8, not 16"),
        ({"D": 3}, "is a sweep with D 2, not 3"),
    ],
)
def test_invalid_settings_get_one_sentence(finished, options, sentence, capsys):
    before = (finished / "experiment_metadata.json").read_bytes()
    assert run_command(lambda: sweep(finished, **options)) == 1
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1
    assert (finished / "experiment_metadata.json").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        {"tasks": "2,many"}, {"share": "3/2"}, {"num_steps": 0}, {"seed": "x"}, {"stack": -1}, {"grad_clip": 0},
        {"learning_rate": 0}, {"early_stopping_patience": 0}, {"processes": 2, "share": "1/2"},
    ],
)  # fmt: skip
def test_usage_errors(options, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        sweep(tmp_path / "new", **options)
    assert stopped.value.code == 2
    assert f"--{next(iter(options))}" in capsys.readouterr().err
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


def test_without_clipping(tmp_path):
    sweep(tmp_path, tasks="2", grad_clip="none", num_steps=20)
    assert json.loads((tmp_path / "experiment_metadata.json").read_text())["settings"]["grad_clip"] is None


def test_a_share_without_members_ends_well(tmp_path, capsys):
    assert run_command(lambda: sweep(tmp_path, share="4/9")) == 0  # of 2, 8 and inf
    assert capsys.readouterr().out == "zoo: share 4/9 has no members: the sweep has only 3\n"


@pytest.mark.parametrize("text", ["3/2", "0/2", "1", "a/b", "1/2/3", ""])
def test_a_wrong_share_is_told_the_form(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no share: write I/N, where I is from 1 to N"):
        share(text)


def test_a_task_of_a_job_array_has_its_share(monkeypatch):
    with pytest.raises(argparse.ArgumentTypeError, match="no task of a SLURM job array"):
        share("array")
    for name, value in {"ID": 7, "MIN": 3, "MAX": 9, "STEP": 2}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert share("array") == (7, None, None)  # the sweep knows the number of shares
