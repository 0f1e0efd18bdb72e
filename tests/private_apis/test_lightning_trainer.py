"""The private parts of the Trainer that callbacks use still exist and still act."""

import inspect

from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.connectors import signal_connector

from zoo.private_apis.lightning_trainer import SIGTERMException, set_precision


def test_the_precision_plugin_can_be_replaced():
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    plugin = MixedPrecision("bf16-mixed", "cpu")
    set_precision(trainer, plugin)
    assert trainer.precision_plugin is plugin
    assert trainer.precision == "bf16-mixed"
    # The optimizers are wrapped after the callbacks' setup, so that the plugin applies to them.
    assert "self.precision_plugin" in inspect.getsource(Strategy.setup)


def test_sigterm_is_a_system_exit():
    assert issubclass(SIGTERMException, SystemExit)
    assert "SIGTERM" in inspect.getsource(signal_connector)
