"""Signals received during training: handlers that record them, for a callback that saves and stops."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from zoo.console.signals import (
    SAVE_SIGNAL,
    STOP_SIGNALS,
    is_main_thread,
    leave_lost_terminal,
    signal_name,
    stop_exception,
    write_message,
)


class SignalRecord:
    """Handlers of Ctrl-C (SIGINT), SIGTERM and SIGHUP, which stop training, and of SIGUSR1, which saves.

    `install` starts recording, `restore` ends it. The attributes:

    - `stop`: the first signal that stops training, or None;
    - `save`: whether SIGUSR1 came since it was last reset;
    - `raises_at_once`: raise the exception of the first stop signal from its handler, wherever the program is;
    - `was_raised`: a handler has raised so;
    - `is_busy`: a checkpoint is being written, or training is ending already: signals are recorded and raise nothing.
    """

    def __init__(self) -> None:
        self.reset()
        self._previous: dict[int, Any] = {}

    def reset(self) -> None:
        """Forget earlier signals."""
        self.stop: int | None = None
        self.save = self.raises_at_once = self.was_raised = self.is_busy = False

    def install(self, is_quiet: bool = False) -> None:
        """Set the handlers. Signals that are ignored, as SIGHUP under nohup, stay so, except Ctrl-C.

        Args:
            is_quiet: do not print that a signal was received.
        """
        self.restore()
        self.reset()
        self._is_quiet = is_quiet
        if not is_main_thread():
            return
        for signum in STOP_SIGNALS if SAVE_SIGNAL is None else (*STOP_SIGNALS, SAVE_SIGNAL):
            is_ignored = signal.getsignal(signum) is signal.SIG_IGN and signum != signal.SIGINT
            if not is_ignored:
                self._previous[signum] = signal.signal(signum, self._record)

    def restore(self) -> None:
        """Set the handlers that were there before `install`."""
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous.clear()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Only record signals that come in the block."""
        was_busy, self.is_busy = self.is_busy, True
        try:
            yield
        finally:
            self.is_busy = was_busy

    def exception(self) -> BaseException:
        """The exception that ends the run; from now on signals raise nothing."""
        self.is_busy, self.raises_at_once = True, False
        return stop_exception(self.stop or signal.SIGINT)

    def _record(self, signum: int, frame: FrameType | None) -> None:
        leave_lost_terminal(signum)
        if signum == SAVE_SIGNAL:
            self.save = True
            return
        is_first = self.stop is None
        self.stop = self.stop or signum
        if self.is_busy:
            return
        if is_first and self.raises_at_once:
            self.was_raised = True
            raise self.exception()
        if is_first and not self._is_quiet:
            write_message(f"\nzoo: {signal_name(signum)}: saving and stopping after this step")
        if not is_first and signum == signal.SIGINT:
            raise self.exception()
