"""How Lightning starts the processes of a run, and how they are ended. Written for lightning 2.6.

Private members used: `_MultiProcessingLauncher`, its method `_wrapping_function`; `procs` of all launchers.
tests/private_apis/test_lightning_launchers.py fails when one of them changes.
"""

import contextlib
import functools
import multiprocessing
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

SECONDS_TO_SAVE = 60.0


def run_ranks_through(trainer: Trainer, run: Callable[..., Any]) -> None:
    """Let the ranks that ddp_spawn, ddp_fork and similar strategies start call `run(function, rank, *arguments)`.

    Args:
        trainer: before it starts a stage.
        run: calls `function(rank, *arguments)`, which is what Lightning would call; it can be pickled.
    """
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):
        launcher._wrapping_function = functools.partial(run, launcher._wrapping_function)  # type: ignore[method-assign]


def only_starts_ranks(trainer: Trainer) -> bool:
    """Whether this process trains nothing itself and waits for the ranks that it starts, as with ddp_spawn."""
    is_launcher = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
    return is_launcher and multiprocessing.parent_process() is None


def stop_observing_ranks(trainer: Trainer) -> None:
    """After an exception: keep Lightning from killing this process when a rank that it has started is gone."""
    launcher: Any = trainer.strategy.launcher
    processes: list[Any] = getattr(launcher, "procs", [])
    if processes:
        launcher.procs = list(processes)  # for `end_other_ranks`
        processes.clear()  # the list that Lightning's thread looks into


def end_other_ranks(trainer: Trainer, patience: float = 3.0) -> None:
    """In the process that started the other ranks, after an exception: wait for them, and end those that go on.

    With ddp_spawn and ddp_fork all ranks are others: they are told to save and stop, and have a minute to do so.

    Args:
        trainer: whose strategy started the processes.
        patience: seconds in which they may end by themselves, then after SIGTERM; then they are killed.
    """
    processes: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
    waiting = list(processes)
    processes.clear()  # Lightning kills this process if it sees that another has ended with an error
    signals: list[tuple[int | None, float]] = [(None, patience), (signal.SIGTERM, patience), (signal.SIGKILL, patience)]
    if only_starts_ranks(trainer):
        signals = [(signal.SIGTERM, SECONDS_TO_SAVE), (signal.SIGKILL, patience)]
    with _sigterm_ignored():
        for signum, seconds in signals:
            for process in waiting if signum is not None else []:
                process.terminate() if signum == signal.SIGTERM else process.kill()
            waiting = [process for process in waiting if not _has_ended(process, seconds)]


@contextlib.contextmanager
def _sigterm_ignored() -> Iterator[None]:
    """Ignore SIGTERM in the block: a second one must not end the wait for processes that save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
