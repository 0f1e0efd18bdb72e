"""The private parts of the Trainer that callbacks use still exist and still act."""

import inspect
import signal

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel, RandomIterableDataset
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.connectors import signal_connector
from torch.utils.data import DataLoader

from zoo.errors import UserError
from zoo.private_apis.lightning_trainer import (
    SIGTERMException,
    explain_long_interval,
    keep_signal_handlers,
    predict_on_every_rank,
    requeues,
    set_precision,
)


def quiet_trainer(**options):
    off = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    return Trainer(accelerator="cpu", **off, **options)


def test_the_precision_plugin_can_be_replaced():
    trainer = quiet_trainer()
    plugin = MixedPrecision("bf16-mixed", "cpu")
    set_precision(trainer, plugin)
    assert trainer.precision_plugin is plugin
    assert trainer.precision == "bf16-mixed"
    # The optimizers are wrapped after the callbacks' setup, so that the plugin applies to them.
    assert "self.precision_plugin" in inspect.getsource(Strategy.setup)


def test_sigterm_is_a_system_exit():
    assert issubclass(SIGTERMException, SystemExit)
    assert "SIGTERM" in inspect.getsource(signal_connector)


def test_lightning_leaves_the_handler_of_sigterm():
    trainer, before = quiet_trainer(), signal.getsignal(signal.SIGTERM)
    keep_signal_handlers(trainer)
    trainer._signal_connector.register_signal_handlers()  # what Trainer calls before each stage
    assert signal.getsignal(signal.SIGTERM) is before
    assert "self._signal_connector.register_signal_handlers()" in inspect.getsource(Trainer._run)


def test_requeues_in_slurm_jobs_only():
    assert not requeues(quiet_trainer())
    assert not requeues(quiet_trainer(plugins=[SLURMEnvironment(auto_requeue=False)]))
    assert requeues(quiet_trainer(plugins=[SLURMEnvironment(auto_requeue=True)]))


def test_a_process_without_batches_runs_the_hooks_of_predict(monkeypatch):
    trainer = quiet_trainer()
    loop = trainer.predict_loop
    loop.max_batches = [0]
    predict_on_every_rank(trainer)
    assert trainer.predict_loop is loop
    assert loop.skip
    monkeypatch.setattr(type(trainer), "world_size", 2)
    assert not loop.skip
    trainer.limit_predict_batches = 0
    assert loop.skip


@pytest.mark.parametrize(
    ("interval", "sentence"),
    [(100, "100 is more than the 64 batches of an epoch: add --trainer.check_val_every_n_epoch null"),
     (0.5, "0.5 is a share of an epoch, but the number of batches of an epoch is not known")],
)  # fmt: skip
def test_an_interval_that_does_not_suit_the_data_is_explained(interval, sentence):
    trainer = quiet_trainer(val_check_interval=interval, max_steps=1, enable_model_summary=False)
    explain_long_interval(trainer)
    loader = DataLoader(RandomIterableDataset(32, 64)) if interval == 0.5 else None
    with pytest.raises(UserError, match=sentence):
        trainer.fit(BoringModel(), loader)


def test_another_error_of_the_loader_is_not_changed(monkeypatch):
    trainer = quiet_trainer(enable_model_summary=False, max_steps=1)
    explain_long_interval(trainer)
    monkeypatch.setattr(BoringModel, "train_dataloader", lambda _: DataLoader([1], batch_size=0))
    with pytest.raises(ValueError, match="batch_size") as caught:
        trainer.fit(BoringModel())
    assert not isinstance(caught.value, UserError)
