"""The sweep: members that equal their own single runs, however they are stacked, shared out, killed and resumed."""

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
from zoo.icr import ICRegConfig, ICRTransformer, load_model
from zoo.icr.sweep import __main__ as sweep_module
from zoo.icr.sweep.stack import StackedICR, StackedTasks
from zoo.icr.task import Prompts
from zoo.training.checkpoint_file import read_checkpoint

SIZES = {"D": 2, "K": 4, "d_model": 8, "d_mlp": 16, "n_heads": 2, "n_layers": 2}
TRAINING = {"num_steps": 60, "eval_every": 20, "checkpoint_every": 30, "batch_size": 8, "warmup_steps": 25, "n_val": 16}
HARD = {"learning_rate": 0.003, "grad_clip": 0.2}  # so that most gradients are clipped


def sweep(folder: Path, tasks: str = "2,8,inf", **settings: object) -> dict[str, dict]:
    """Run a sweep in this process; returns what its metadata says of the members."""
    options = SIZES | TRAINING | HARD | {"tasks": tasks, "output_dir": folder, "accelerator": "cpu"} | settings
    sweep_module.main([f"--{name}={value}" for name, value in options.items()])
    return json.loads((folder / "experiment_metadata.json").read_text())["members"]


def weights(folder: Path, M: int | str, name: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return read_checkpoint(str(folder / f"checkpoints_M{M}" / name))["state_dict"]


def assert_close(folder: Path, other: Path, *members: int | str, atol: float = 1e-4) -> None:
    for M in members:
        expected = weights(folder, M)
        for name, tensor in weights(other, M).items():
            torch.testing.assert_close(tensor, expected[name], atol=atol, rtol=0, msg=f"M {M}: {name}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished sweep of three members in one stack."""
    folder = tmp_path_factory.mktemp("sweep")
    assert {of["status"] for of in sweep(folder).values()} == {"done"}
    return folder


@pytest.mark.parametrize("M", [2, 8, "inf"])
def test_a_member_equals_its_own_single_run(whole, M, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    settings = {name: TRAINING[name] for name in ("warmup_steps",)} | SIZES
    task = {name: SIZES[name] for name in ("D", "K")} | {"M": M, "batch_size": 8, "steps_per_batch": 1}

    def single(**options) -> dict[str, torch.Tensor]:
        module = ICRTransformer(lr=HARD["learning_rate"], **settings, **options)
        return train(module, LinearRegressionTasks(**task), tmp_path, max_steps=60, limit_val_batches=0)

    expected = single(grad_clip=HARD["grad_clip"])
    for name, tensor in weights(whole, M).items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=0)
    unclipped = single(grad_clip=None)
    assert any((unclipped[name] - expected[name]).abs().max() > 1e-3 for name in expected), "clipping was not active"


def test_members_differ_in_their_pools_alone(whole):
    two, eight = weights(whole, 2), weights(whole, 8)
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


def test_one_by_one_and_in_shares(whole, tmp_path):
    sweep(tmp_path / "single", stack=1)
    assert_close(whole, tmp_path / "single", 2, 8, "inf")
    first = sweep(tmp_path / "shared", share="1/2")
    assert [first[M]["status"] for M in ("2", "8", "inf")] == ["done", "waiting", "done"]
    second = sweep(tmp_path / "shared", share="2/2")
    assert {of["status"] for of in second.values()} == {"done"}
    assert_close(whole, tmp_path / "shared", 2, 8, "inf")


def test_two_processes_share_the_list(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    reached = sweep(tmp_path, processes=2)
    assert {of["status"] for of in reached.values()} == {"done"}
    assert_close(whole, tmp_path, 2, 8, "inf")


@pytest.mark.parametrize("stack", [0, 2])
def test_a_killed_sweep_goes_on_where_it_was(whole, stack, tmp_path, monkeypatch):
    """Killed between two checkpoints, twice, and at last stacked in another way."""
    log_losses = StackedICR._log_losses
    for killed_at in (30, 50):  # with --stack 2 the third member is not yet begun

        def killed(self, loss, killed_at=killed_at):
            if self.global_step >= killed_at:
                raise KeyboardInterrupt
            log_losses(self, loss)

        monkeypatch.setattr(StackedICR, "_log_losses", killed)
        assert run_command(lambda: sweep(tmp_path, stack=stack)) == 130
        monkeypatch.undo()
        statuses = json.loads((tmp_path / "experiment_metadata.json").read_text())["members"]
        assert statuses["2"]["status"] == "running"
    assert read_checkpoint(str(tmp_path / "checkpoints_M2" / "last.ckpt"))["global_step"] == 40
    reached = sweep(tmp_path, stack=0)
    assert {of["status"] for of in reached.values()} == {"done"}
    assert_close(whole, tmp_path, 2, 8, "inf", atol=1e-6)
    for M in (2, 8, "inf"):
        assert {p.name for p in (tmp_path / f"checkpoints_M{M}").glob("*.ckpt")} == {
            "best.ckpt", "last.ckpt", "checkpoint_step_30.ckpt", "checkpoint_step_60.ckpt",
        }  # fmt: skip


def test_a_resumed_stack_is_bitwise_the_unbroken_one(whole, tmp_path, monkeypatch):
    log_losses = StackedICR._log_losses

    def killed(self, loss):
        if self.global_step >= 50:
            raise KeyboardInterrupt
        log_losses(self, loss)

    monkeypatch.setattr(StackedICR, "_log_losses", killed)
    assert run_command(lambda: sweep(tmp_path)) == 130
    monkeypatch.undo()
    sweep(tmp_path)
    assert_close(whole, tmp_path, 2, 8, "inf", atol=0)


def test_a_finished_sweep_is_left_alone_and_can_grow(tmp_path, capsys):
    sweep(tmp_path, tasks="2")
    before = (tmp_path / "checkpoints_M2" / "last.ckpt").stat().st_mtime_ns
    reached = sweep(tmp_path, tasks="2,4")
    assert (tmp_path / "checkpoints_M2" / "last.ckpt").stat().st_mtime_ns == before
    assert list(reached) == ["2", "4"]
    assert "true_to_ridge" in capsys.readouterr().out


def test_a_failed_member_is_reported_and_the_others_go_on(tmp_path, monkeypatch, capsys):
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
    assert sweep(tmp_path / "with")["8"]["status"] == "done"  # called again, it tries again


def test_a_stack_that_breaks_does_not_stop_the_next(tmp_path, monkeypatch):
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


def test_each_member_stops_early_by_itself(whole, tmp_path):
    """A min_delta between the members' falls in error stops those that fall by less, and leaves the others alone."""
    losses = {}
    for M in ("2", "8", "inf"):
        events = EventAccumulator(str(whole / f"checkpoints_M{M}")).Reload().Scalars("val_loss")
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
    assert_close(whole, tmp_path, *going_on, atol=1e-5)


def test_metadata_is_there_from_the_start(tmp_path, monkeypatch):
    seen = {}

    def look(members, step, args, report):
        seen.update(json.loads((tmp_path / "experiment_metadata.json").read_text()))
        for M in members:
            report(M, "done", step=60)

    monkeypatch.setattr(sweep_module, "train", look)
    sweep(tmp_path)
    assert {of["status"] for of in seen["members"].values()} == {"waiting"}
    assert seen["settings"]["batch_size"] == 8
    assert seen["settings"]["D"] == 2


def test_a_members_checkpoint_is_one_of_zoo_fit(whole, tmp_path, capsys):
    path = whole / "checkpoints_M8" / "checkpoint_step_60.ckpt"
    model = load_model(str(path))
    assert (model.config.M, model.config.D, model.config.K) == (8, 2, 4)
    score = json.loads((whole / "experiment_metadata.json").read_text())["members"]["8"]["val_true_mse"]
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
        ({"n_heads": 3}, "d_model 8 does not divide into n_heads 3"),
        ({"batch_size": 16}, "is a sweep with batch_size 8, not 16"),
        ({"D": 3}, "is a sweep with D 2, not 3"),
    ],
)
def test_settings_that_make_no_sense(whole, options, sentence, capsys):
    before = (whole / "experiment_metadata.json").read_bytes()
    assert run_command(lambda: sweep(whole, **options)) == 1
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1
    assert (whole / "experiment_metadata.json").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        {"tasks": "2,many"}, {"share": "3/2"}, {"num_steps": 0}, {"seed": "x"}, {"stack": -1}, {"grad_clip": 0},
        {"learning_rate": 0}, {"early_stopping_patience": 0}, {"processes": 2, "share": "1/2"},
    ],
)  # fmt: skip
def test_slips_of_usage(options, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        sweep(tmp_path / "new", **options)
    assert stopped.value.code == 2
    assert f"--{next(iter(options))}" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_damaged_metadata(tmp_path, capsys):
    (tmp_path / "experiment_metadata.json").write_text("{")
    assert run_command(lambda: sweep(tmp_path)) == 1
    assert "experiment_metadata.json is damaged" in capsys.readouterr().err


def test_a_kill_between_evaluations_loses_no_more_than_checkpoint_every(tmp_path, monkeypatch):
    log_losses = StackedICR._log_losses

    def killed(self, loss):
        if self.global_step >= 50:
            raise KeyboardInterrupt
        log_losses(self, loss)

    monkeypatch.setattr(StackedICR, "_log_losses", killed)
    assert run_command(lambda: sweep(tmp_path, tasks="2", eval_every=60, checkpoint_every=15)) == 130
    assert read_checkpoint(str(tmp_path / "checkpoints_M2" / "last.ckpt"))["global_step"] == 45


def test_a_stop_at_an_evaluation_waits_for_it(tmp_path, monkeypatch):
    """Else the last block's stop would leave a member that is done, but was never evaluated."""
    log_losses = StackedICR._log_losses

    def told_to_stop(self, loss):
        log_losses(self, loss)
        if self.global_step == 60:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(StackedICR, "_log_losses", told_to_stop)
    assert run_command(lambda: sweep(tmp_path, tasks="2")) in (0, 130)
    member = json.loads((tmp_path / "experiment_metadata.json").read_text())["members"]["2"]
    assert member["status"] == "done"
    assert member["val_true_mse"] > 0
    assert (tmp_path / "checkpoints_M2" / "checkpoint_step_60.ckpt").exists()


def test_an_evaluation_that_is_not_finite_is_its_members_alone(tmp_path, monkeypatch, capsys):
    step = StackedICR.validation_step

    def poisoned(self, rows, batch_idx):
        step(self, rows, batch_idx)
        if self.global_step == 40 and 8 in self.members:
            for metric in self.errors.values():
                metric.sums[:, self.members.index(8)] = torch.nan

    monkeypatch.setattr(StackedICR, "validation_step", poisoned)
    assert run_command(lambda: sweep(tmp_path)) == 1
    assert "M 8 failed: the error is no longer finite" in capsys.readouterr().err
    members = json.loads((tmp_path / "experiment_metadata.json").read_text())["members"]
    assert [members[M]["status"] for M in ("2", "8", "inf")] == ["done", "failed", "done"]


def test_all_members_may_fail(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DEBUG", "1")  # anything but the sentence would be raised
    monkeypatch.setattr(StackedTasks, "draw", lambda self, step: draw_nan(self))

    def draw_nan(data):
        x = torch.zeros(8, 4, 2)
        return Prompts(x, torch.full((len(data.members), 8, 4), torch.nan), torch.zeros(len(data.members), 8, 2))

    with pytest.raises(ValueError, match="3 of 3 members have not ended"):
        run_command(lambda: sweep(tmp_path))


def test_a_member_that_another_process_trains_is_left_to_it(tmp_path, capsys):
    folder = tmp_path / "checkpoints_M8"
    folder.mkdir()
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run_command(lambda: sweep(tmp_path)) == 1
    told = capsys.readouterr().err
    assert "another process trains M 8" in told
    assert "1 of 3 members have not ended, M 8 (waiting)" in told


def test_a_share_answers_for_its_own_members(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_module, "train", lambda members, *_: (_ for _ in ()).throw(RuntimeError("broken")))
    assert run_command(lambda: sweep(tmp_path, share="2/2")) == 1  # 8, which failed
    monkeypatch.undo()
    assert run_command(lambda: sweep(tmp_path, share="1/2")) == 0  # 2 and inf


def test_without_clipping(tmp_path):
    sweep(tmp_path, tasks="2", grad_clip="none", num_steps=20)
    assert json.loads((tmp_path / "experiment_metadata.json").read_text())["settings"]["grad_clip"] is None
