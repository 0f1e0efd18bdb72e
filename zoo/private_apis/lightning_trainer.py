"""Trainer internals that callbacks and exit codes need. Written for lightning 2.6.

Private members used: the setter of `Strategy.precision_plugin`; `SIGTERMException`.
tests/private_apis/test_lightning_trainer.py fails when one of them changes.
"""

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.exceptions import SIGTERMException

__all__ = ["SIGTERMException", "set_precision"]


def set_precision(trainer: Trainer, plugin: Precision) -> None:
    """Replace the Trainer's precision plugin; call this in a callback's `setup`, before the strategy is set up."""
    trainer.strategy.precision_plugin = plugin
