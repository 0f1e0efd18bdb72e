"""Trainer internals that callbacks, signals and exit codes need. Written for lightning 2.6.

Private members used: the setter of `Strategy.precision_plugin`; `SIGTERMException`; `Trainer._signal_connector` and its
method `register_signal_handlers`; `Trainer._accelerator_connector.cluster_environment`.
tests/private_apis/test_lightning_trainer.py fails when one of them changes.
"""

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import ClusterEnvironment, SLURMEnvironment
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.exceptions import SIGTERMException

__all__ = ["SIGTERMException", "cluster_environment", "keep_signal_handlers", "requeue_signal", "set_precision"]


def set_precision(trainer: Trainer, plugin: Precision) -> None:
    """Replace the Trainer's precision plugin; call this in a callback's `setup`, before the strategy is set up."""
    trainer.strategy.precision_plugin = plugin


def cluster_environment(trainer: Trainer) -> ClusterEnvironment | None:
    """What knows the number of this rank and the address of the first; None for strategies of one process."""
    return trainer._accelerator_connector.cluster_environment


def requeue_signal(trainer: Trainer) -> int | None:
    """The signal after which Lightning saves and requeues the job; None where this is not such a SLURM job."""
    environment = cluster_environment(trainer)
    if not isinstance(environment, SLURMEnvironment) or not environment.auto_requeue:
        return None
    return environment.requeue_signal


def keep_signal_handlers(trainer: Trainer) -> None:
    """Leave SIGTERM as it is handled already, except in a SLURM job that Lightning requeues.

    Lightning's own handler lets the current stage go on to the end of a batch, and starts a collective operation while
    another may be running.
    """
    if requeue_signal(trainer) is None:
        trainer._signal_connector.register_signal_handlers = _register_nothing  # type: ignore[method-assign]


def _register_nothing() -> None:  # a function of the module, so that a Trainer can be pickled
    pass
