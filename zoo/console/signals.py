"""Signals that end a command: SIGTERM and SIGHUP raise `Terminated`; a rank ends with the process that started it.

Ctrl-C (SIGINT) raises KeyboardInterrupt, as in every Python program. While a model trains, `zoo.callbacks.Checkpoint`
replaces these handlers by its own, which save first.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from zoo.console.slurm import is_job_step, requeue_job

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SAVE_SIGNAL: int | None = getattr(signal, "SIGUSR1", None)  # Windows has neither SIGHUP nor SIGUSR1
PARENT_VARIABLE = "ZOO_END_WITH_PARENT"  # set for a process that ends with the one that started it
REPORTS = "reports"  # its value for the one process that prints why
LOST_RANK_REMEDY = "to continue, resume from last.ckpt"
LOST_RANK = f"another process of the run has ended (killed, or out of memory): {LOST_RANK_REMEDY}"
needs_parent = threading.Event()  # set while a model trains: the end of the process that started this one is a failure


class Terminated(SystemExit):
    """SIGTERM or SIGHUP ended the command; the exit code is 128 + the number of the signal.

    Args:
        signum: number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


def stop_exception(signum: int) -> BaseException:
    """The exception that ends a command after a signal: KeyboardInterrupt for Ctrl-C, otherwise `Terminated`."""
    return KeyboardInterrupt() if signum == signal.SIGINT else Terminated(signum)


def signal_name(signum: int) -> str:
    """The name of a signal for a message: "Ctrl-C" for SIGINT, "signal 40" for a number without a name."""
    if signum == signal.SIGINT:
        return "Ctrl-C"
    try:
        return signal.Signals(signum).name
    except ValueError:  # a real-time signal between the first and the last
        return f"signal {signum}"


def is_main_thread() -> bool:
    """Whether this is the main thread, the only one in which Python sets and runs signal handlers."""
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def raised_stop_signals() -> Iterator[None]:
    """Raise `Terminated` after the first SIGTERM or SIGHUP in the block, and ignore SIGUSR1.

    A signal that is ignored, as SIGHUP under nohup, or handled already stays so. Under SLURM, SIGUSR1 announces the end
    of the job's time: before training there is nothing to save, and the job is requeued.
    """
    if not is_main_thread():
        yield
        return
    handlers: dict[int, Any] = {signum: _raise for signum in STOP_SIGNALS if signum != signal.SIGINT}
    if SAVE_SIGNAL is not None:
        handlers[SAVE_SIGNAL] = _requeue if is_job_step() else _ignore  # before training, nothing to save
    handlers = {s: handler for s, handler in handlers.items() if signal.getsignal(s) is signal.SIG_DFL}
    for signum, handler in handlers.items():
        signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum in handlers:
            signal.signal(signum, signal.SIG_DFL)


@contextlib.contextmanager
def imports_that_end_on_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt after Ctrl-C in the block, and `Terminated` after SIGTERM or SIGHUP, in any case.

    Some packages catch such an exception while they import others, and then fail in another way or go on.
    """
    received: list[int] = []

    def record_and_raise(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        _raise(signum, frame)

    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS if is_main_thread()}
    replaced = {s: handler for s, handler in before.items() if handler in (_raise, signal.default_int_handler)}
    for signum in replaced:
        signal.signal(signum, record_and_raise)
    try:
        yield
    except Exception as error:
        if received:
            raise stop_exception(received[0]) from error
        raise
    finally:
        for signum, handler in replaced.items():
            signal.signal(signum, handler)
    if received:
        raise stop_exception(received[0])


def _raise(signum: int, frame: FrameType | None) -> None:
    # A second signal, as each of several processes may send one, must not interrupt the cleaning up after the first.
    for other in STOP_SIGNALS:
        if other != signal.SIGINT and signal.getsignal(other) is _raise:
            signal.signal(other, _ignore)
    leave_lost_terminal(signum)
    raise stop_exception(signum)


def _ignore(signum: int, frame: FrameType | None) -> None:
    """A handler that does nothing; unlike SIG_IGN, started processes do not inherit it."""


def _requeue(signum: int, frame: FrameType | None) -> None:
    if os.environ["SLURM_PROCID"] == "0":
        write_message(f"zoo: {requeue_job()}")


def write_message(message: str) -> None:
    """Print to standard error from a signal handler or thread, where print() may have been interrupted itself."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), f"{message}\n".encode())


def leave_lost_terminal(signum: int) -> None:
    """After SIGHUP of a closed terminal, send output to nowhere: every later print would fail."""
    if signum != getattr(signal, "SIGHUP", None):
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # not a file, or closed
            _replace_lost(stream.fileno())


def _replace_lost(descriptor: int) -> None:
    try:
        os.write(descriptor, b"")
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def end_with_parent() -> None:
    """In a rank that another process started: end as soon as that process is gone, also after `kill -9`.

    A rank that waits for the others in a collective operation would otherwise wait for half an hour. During training
    the first of these ranks prints what has happened.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0" and PARENT_VARIABLE not in os.environ:
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        is_first = os.environ.get("LOCAL_RANK") == "1" or os.environ.get(PARENT_VARIABLE) == REPORTS
        if is_first and needs_parent.is_set():
            write_message(f"zoo: {LOST_RANK}")
        os._exit(1)  # a thread cannot raise in the main thread, and that may wait inside torch

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
