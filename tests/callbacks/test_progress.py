"""The Progress callback: steps of all steps, time left, losses and evaluations, for each way to limit a run."""

import re
import time
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks import Progress, progress
from zoo.callbacks.budget import Budget
from zoo.callbacks.progress import total_steps
from zoo.console.progress_display import Display
from zoo.console.progress_text import full_line

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
ROWS = DataLoader(TensorDataset(torch.arange(10.0)[:, None]), batch_size=2)  # 5 batches


class Model(LightningModule):
    """One weight, whose losses are logged as the zoo's models do."""

    total_steps = 20  # of the schedule

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        loss = self.linear(batch[0]).square().mean()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if dataloader_idx == 0:
            self.log("val_loss", 2.5, add_dataloader_idx=False)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        if dataloader_idx == 0:
            self.log("test_loss", 3.5, add_dataloader_idx=False)

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return batch[0]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def plan_steps(self, steps):
        self.total_steps = steps
        return {}


class Recorded(Display):
    """A display that keeps what it is given, at every opportunity."""

    def __init__(self):
        super().__init__(seconds=0)
        self.shown = []

    def _draw(self, progress):
        self.shown.append(progress)


@pytest.fixture
def displays(monkeypatch):
    """The displays that were opened."""
    opened = []

    def open_display():
        opened.append(Recorded())
        return opened[-1]

    monkeypatch.setattr(progress, "open_display", open_display)
    return opened


def trainer(*callbacks, shown=None, **limits):
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(callbacks=[*callbacks, shown or Progress()], **options | limits)


def test_one_line_for_a_run_of_several_epochs(displays):
    trainer(shown=Progress("trial 2 of 3"), max_steps=12).fit(Model(), ROWS, ROWS)
    [display] = displays
    steps = [p.done for p in display.shown if not p.activity]
    assert steps == sorted(steps)
    assert set(steps) == set(range(13))
    assert {p.total for p in display.shown} == {12}
    in_validation = [p for p in display.shown if p.activity]
    assert [p.activity for p in in_validation[:5]] == [f"validation, batch {i} of 5" for i in range(1, 6)]
    assert {p.done for p in in_validation} == {5, 10}
    last = display.shown[-1]
    assert list(last.values) == ["train_loss", "val_loss"]
    assert last.values["val_loss"] == 2.5
    assert re.match(r"trial 2 of 3: step 12 of 12, 100 %, \S+ \S+, 00:00 left, train_loss ", full_line(last))


@pytest.mark.parametrize(("limits", "total"), [({"max_epochs": 3}, 9), ({"max_epochs": 3, "max_steps": 7}, 7)])
def test_steps_of_a_run_that_is_limited_by_epochs(limits, total, displays):
    """Five batches, two for each step, the last step of an epoch has one."""
    run = trainer(accumulate_grad_batches=2, limit_val_batches=0, **limits)
    run.fit(Model(), ROWS)
    [display] = displays
    assert {p.total for p in display.shown} == {total}
    assert display.shown[-1].done == run.global_step == total


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_starts_at_its_step(displays, tmp_path):
    def run(folder, **limits):
        save = ModelCheckpoint(tmp_path / folder, "saved", every_n_train_steps=7)
        return trainer(save, limit_val_batches=0, enable_checkpointing=True, **limits)

    run("first", max_steps=9).fit(Model(), ROWS)
    run("second", max_epochs=4).fit(Model(), ROWS, ckpt_path=tmp_path / "first" / "saved.ckpt")
    shown = displays[1].shown
    assert (shown[0].done, shown[0].total, shown[0].rate) == (7, 20, None)
    assert shown[-1].done == 20


def test_a_run_with_a_limit_of_time_shows_its_end(displays):
    run = trainer(max_time=timedelta(seconds=1000), max_epochs=1, limit_val_batches=0)
    run.fit(Model(), ROWS)
    [display] = displays
    assert all(p.left is not None and p.left <= 1000 for p in display.shown)
    assert display.shown[-1].done_share == 1.0
    run = trainer(max_time=timedelta(seconds=0.2), max_steps=-1, limit_val_batches=0)
    run.fit(Model(), ROWS)
    shown = displays[1].shown
    assert {p.total for p in shown} == {None}
    shares = [p.done_share for p in shown]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0, abs=0.05)


def test_the_share_of_a_resumed_run_includes_the_time_before(displays):
    run = trainer(
        max_time=timedelta(seconds=1000), max_steps=-1, limit_train_batches=2, max_epochs=5, limit_val_batches=0
    )
    timer = next(c for c in run.callbacks if isinstance(c, Timer))
    timer.load_state_dict({"time_elapsed": {"train": 830.0}})
    run.fit(Model(), ROWS)
    assert displays[0].shown[0].done_share == pytest.approx(0.83, abs=0.02)


@pytest.mark.parametrize(
    "limits", [{"min_steps": 12, "max_steps": 100}, {"min_steps": 12}, {"min_epochs": 4, "limit_train_batches": 3}]
)
def test_a_run_whose_time_is_over_shows_the_steps_that_it_has_to_take(limits, displays):
    run = trainer(max_time=timedelta(microseconds=1), limit_val_batches=0, **{"max_steps": -1} | limits)
    run.fit(Model(), ROWS)
    *shown, last = displays[0].shown
    assert run.global_step == last.done == 12
    assert [(p.done, p.done_share) for p in shown[:12]] == [(step, pytest.approx(step / 12)) for step in range(12)]
    assert all(p.left is None or p.left > 0 for p in shown[:12])
    assert (last.done_share, last.left) == (1.0, 0.0)


def test_a_fast_run_with_a_budget_shows_its_end(displays):
    budget = Budget(1000.0, time.monotonic(), n_validations=2, record=lambda settings: None)
    trainer(budget, fast_dev_run=True).fit(Model(), ROWS)
    last = displays[0].shown[-1]
    assert (last.done, last.total, last.done_share, last.left) == (1, 1, 1.0, 0.0)


def test_a_budget_shows_the_steps_that_it_has_planned(displays):
    budget = Budget(1000.0, time.monotonic(), n_validations=2, record=lambda settings: None)
    trainer(budget, max_steps=20, limit_val_batches=0).fit(Model(), ROWS)
    shown = displays[0].shown
    assert (shown[0].total, shown[-1].total) == (None, budget.planned_steps)
    assert budget.planned_steps == 20


@pytest.mark.parametrize(
    ("verb", "activity"), [("validate", "validation"), ("test", "test"), ("predict", "prediction")]
)
def test_evaluations_know_their_end(verb, activity, displays):
    getattr(trainer(limit_test_batches=4, limit_val_batches=4, limit_predict_batches=4), verb)(Model(), [ROWS, ROWS])
    [display] = displays
    assert [(p.done, p.total) for p in display.shown] == [(n, 8) for n in (*range(1, 9), 8)]
    assert full_line(display.shown[0]) == f"batch 1 of 8, 12 %, {activity}"
    assert display.shown[-1].values == {}


def test_only_rank_0_shows_the_line(displays):
    line = Progress()
    line.disable()  # as Lightning does on other ranks
    trainer(shown=line, max_steps=2).fit(Model(), ROWS)
    assert displays == []


def test_an_endless_loader_has_no_total():
    run = trainer(max_epochs=2)
    run.fit_loop.max_batches = float("inf")
    assert total_steps(run) is None


def test_lines_of_a_log_file_at_validations_and_at_the_end(capsys, caplog):
    caplog.set_level("WARNING", "lightning.pytorch")
    trainer(max_steps=12, val_check_interval=5).fit(Model(), ROWS, ROWS)
    out, err = capsys.readouterr()
    assert out == ""
    first, *_, last = err.splitlines()
    assert re.fullmatch(r"step 5 of 12, 41 %, \S+ \S+, \S+ left, train_loss \S+, val_loss 2.5", first)
    assert last.startswith("step 12 of 12, 100 %, ")
