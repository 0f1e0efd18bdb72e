"""Lightning's private counters of training batches mean what zoo.private_apis.lightning_api says."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from zoo.private_apis import lightning_api


class Recorder(LightningModule):
    """A linear model that records the counters at each hook."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1, 1)
        self.started: list[tuple[int, int, bool]] = []
        self.ended: list[tuple[int, int, bool]] = []

    def counters(self) -> tuple[int, int, bool]:
        functions = lightning_api.batches_done, lightning_api.batches_done_in_epoch, lightning_api.is_batch_unfinished
        done, done_in_epoch, is_unfinished = (function(self.trainer) for function in functions)
        return done, done_in_epoch, is_unfinished

    def on_train_batch_start(self, batch, batch_idx: int) -> None:
        assert lightning_api.batch_index(self.trainer) == len(self.started)
        self.started.append(self.counters())

    def training_step(self, batch, batch_idx: int):
        return self.linear(batch[0]).square().mean()

    def on_train_batch_end(self, outputs, batch, batch_idx: int) -> None:
        assert lightning_api.batch_index(self.trainer) == len(self.ended)
        self.ended.append(self.counters())
        assert lightning_api.is_epoch_done(self.trainer) == (batch_idx == 2)
        validation = self.trainer.fit_loop.epoch_loop.val_loop.batch_progress
        assert lightning_api.validation_progress(self.trainer) == validation.state_dict()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def trained(tmp_path):
    """A module after two epochs of three batches, and its trainer."""
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer, module = Trainer(accelerator="cpu", max_epochs=2, default_root_dir=tmp_path, **off), Recorder()
    trainer.fit(module, DataLoader(TensorDataset(torch.ones(6, 1)), batch_size=2))
    return trainer, module


def test_counters_of_finished_batches(trained):
    _, module = trained
    assert module.started == [(0, 0, True), (1, 1, True), (2, 2, True), (3, 0, True), (4, 1, True), (5, 2, True)]
    assert module.ended == [(1, 1, False), (2, 2, False), (3, 3, False), (4, 1, False), (5, 2, False), (6, 3, False)]


def test_take_back_batches_makes_them_run_again(trained):
    trainer, _ = trained
    lightning_api.take_back_batches(trainer, 2)
    assert lightning_api.batches_done(trainer) == 4
    assert lightning_api.batches_done_in_epoch(trainer) == 1
    assert lightning_api.batch_index(trainer) == 3
    assert not lightning_api.is_batch_unfinished(trainer)
    assert not lightning_api.is_epoch_done(trainer)
    progress = lightning_api.training_progress(trainer)
    assert progress.total.ready == progress.total.started == progress.total.processed == progress.total.completed == 4


def test_fitting_and_validating_are_told_apart():
    class States(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(1, 1)
            self.states: list[tuple[str, bool, bool]] = []

        def record(self, step: str) -> None:
            self.states.append((step, lightning_api.is_fitting(self), lightning_api.is_validating(self)))

        def training_step(self, batch, batch_idx: int):
            self.record("training")
            return self.linear(batch[0]).square().mean()

        def validation_step(self, batch, batch_idx: int) -> None:
            self.record("sanity check" if self.trainer.sanity_checking else "validation")

        def test_step(self, batch, batch_idx: int) -> None:
            self.record("test")

        def predict_step(self, batch, batch_idx: int):
            self.record("prediction")
            return batch[0]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def states(verb: str) -> list[tuple[str, bool, bool]]:
        module.states.clear()
        loader = DataLoader(TensorDataset(torch.ones(1, 1)))
        off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = Trainer(accelerator="cpu", max_epochs=1, **off)
        getattr(trainer, verb)(module, *([loader, loader] if verb == "fit" else [loader]))
        return module.states[:]

    module = States()
    assert (lightning_api.is_fitting(module), lightning_api.is_validating(module)) == (False, False)  # no Trainer
    assert states("fit") == [("sanity check", True, False), ("training", True, False), ("validation", True, True)]
    assert states("validate") == [("validation", False, True)]
    assert states("test") == [("test", False, False)]
    assert states("predict") == [("prediction", False, False)]


def test_counting_steps_leaves_the_training_loader_unopened():
    """It must open after a resumed run has restored its position: see total_training_steps."""

    class Counting(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(1, 1)

        def training_step(self, batch, batch_idx: int):
            return self.linear(batch[0]).square().mean()

        def configure_optimizers(self):
            self.steps = lightning_api.total_training_steps(self.trainer)
            self.loader = self.trainer.fit_loop._combined_loader
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Counting()
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accumulate_grad_batches=2,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(torch.ones(5, 1)), batch_size=1))
    assert module.steps == 9 == trainer.global_step
    assert module.loader is None
