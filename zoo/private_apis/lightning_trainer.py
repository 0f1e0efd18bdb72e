"""Trainer internals that callbacks, signals and exit codes need. Written for lightning 2.6.

Private members used: the setter of `Strategy.precision_plugin`; `SIGTERMException`; `Trainer._signal_connector` and its
method `register_signal_handlers`; `Trainer._accelerator_connector.cluster_environment`; `procs` of the launchers.
tests/private_apis/test_lightning_trainer.py fails when one of them changes.
"""

import signal
import subprocess
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.exceptions import SIGTERMException

__all__ = ["SIGTERMException", "end_other_ranks", "keep_signal_handlers", "requeue_signal", "set_precision"]


def set_precision(trainer: Trainer, plugin: Precision) -> None:
    """Replace the Trainer's precision plugin; call this in a callback's `setup`, before the strategy is set up."""
    trainer.strategy.precision_plugin = plugin


def requeue_signal(trainer: Trainer) -> int | None:
    """The signal after which Lightning saves and requeues the job; None where this is not such a SLURM job."""
    environment = trainer._accelerator_connector.cluster_environment
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


def end_other_ranks(trainer: Trainer, patience: float = 3.0) -> None:
    """In the process that started the other ranks, after an exception: wait for them, and end those that go on.

    Args:
        trainer: whose strategy started the processes.
        patience: seconds in which they may end by themselves, then after SIGTERM; then they are killed.
    """
    processes: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
    waiting = list(processes)
    processes.clear()  # Lightning kills this process if it sees that another has ended with an error
    for signum in (None, signal.SIGTERM, signal.SIGKILL):
        for process in waiting if signum is not None else []:
            process.terminate() if signum == signal.SIGTERM else process.kill()
        waiting = [process for process in waiting if not _has_ended(process, patience)]


def _has_ended(process: Any, seconds: float) -> bool:
    """Wait for a process of `subprocess` or `multiprocessing`."""
    if isinstance(process, subprocess.Popen):
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True
    process.join(seconds)
    return not process.is_alive()
