"""The sweep: each member equals its single run, for any stacking, any division among processes, and after resuming."""

import argparse
import json
import re
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
        last_saved = {30: 30, 50: 40}[killed_at]
        assert (statuses["2"]["status"], statuses["2"]["step"]) == ("stopped", last_saved)
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


def test_early_stopping_acts_on_single_members(finished, tmp_path):
    """A min_delta between the members' decreases in error stops the slowest and does not change the others."""
    losses = {}
    for M in ("2", "8", "inf"):
        events = EventAccumulator(str(finished / f"checkpoints_M{M}")).Reload().Scalars("val/loss")
        losses[M] = [event.value for event in events]
        figures = EventAccumulator(str(finished / f"checkpoints_M{M}"), {"images": 0}).Reload().Images("figures/errors")
        assert [figure.step for figure in figures] == [60]  # drawn at the member's end only
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


def test_without_clipping(tmp_path):
    sweep(tmp_path, tasks="2", grad_clip="none", num_steps=20)
    assert json.loads((tmp_path / "experiment_metadata.json").read_text())["settings"]["grad_clip"] is None


def test_a_task_of_a_job_array_has_its_share(monkeypatch):
    with pytest.raises(argparse.ArgumentTypeError, match="not a task of a SLURM job array"):
        share("array")
    for name, value in {"ID": 7, "MIN": 3, "MAX": 9, "STEP": 2}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert share("array") == (7, None, None)  # the sweep knows the number of shares
