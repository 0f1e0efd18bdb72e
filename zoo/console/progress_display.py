"""Where a progress line is shown: redrawn in a terminal or notebook, printed now and then in a pipe or log file.

`open_display` chooses. Output goes to standard error, so that the standard output of a command remains its result.
"""

import contextlib
import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from zoo.console.progress_text import Clock, Progress, full_line, line_with_bar

PLAIN_VARIABLE = "ZOO_PLAIN_PROGRESS"  # if set: lines as in a log file, also in a terminal
LOG_SECONDS = 10.0  # between two lines of a log file
LOG_EVENT_SECONDS = 1.0  # at least, between a line and that of a validation
NOTEBOOK_COLUMNS = 110


class Display(ABC):
    """A place for a progress line.

    Args:
        seconds: least time between two updates.
        event_seconds: the same for updates that mark an event, such as the end of a validation.
    """

    def __init__(self, seconds: float, event_seconds: float = 0.0) -> None:
        self._seconds, self._event_seconds = seconds, event_seconds
        self._next = self._next_event = -float("inf")

    @abstractmethod
    def _draw(self, progress: Progress) -> None:
        """Show a line in place of the one before."""

    def is_due(self) -> bool:
        """Whether enough time has passed for the next line."""
        return time.monotonic() >= self._next

    def show(self, progress: Progress, is_event: bool = False) -> None:
        """Show a line now; one that marks an event only if the line before is not too recent."""
        now = time.monotonic()
        if is_event and now < self._next_event:
            return
        self._next, self._next_event = now + self._seconds, now + self._event_seconds
        self._draw(progress)

    def close(self, progress: Progress | None = None) -> None:
        """Show the last line, if one is given, and leave it there."""
        if progress is not None:
            self._draw(progress)


class LogLines(Display):
    """Lines without control characters, for pipes, files and logs of continuous integration."""

    def __init__(self) -> None:
        super().__init__(LOG_SECONDS, LOG_EVENT_SECONDS)
        self._next = time.monotonic() + self._seconds  # a short run needs no line before its end
        self._last: Progress | None = None

    def _draw(self, progress: Progress) -> None:
        # A line that differs from the one before in its speed only, as at the end of a run, is not printed.
        if self._last is None or replace(progress, rate=None, left=None) != self._last:
            print(full_line(progress), file=sys.stderr, flush=True)
            self._last = replace(progress, rate=None, left=None)


class NotebookOutput(Display):
    """One output of a notebook's cell, which is replaced at every update; needs no widgets."""

    def __init__(self) -> None:
        super().__init__(seconds=0.5)
        self._handle: Any = None

    def _draw(self, progress: Progress) -> None:
        from IPython.display import display

        content = {"text/plain": line_with_bar(progress, NOTEBOOK_COLUMNS)}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


class TerminalLine(Display):
    """The last line of a terminal, redrawn in place. Other output is printed above it."""

    def __init__(self) -> None:
        super().__init__(seconds=0.1)
        self._terminal, self._progress = sys.stderr, Progress(0)
        self._is_drawn, self._is_line_start = False, True
        self._fill = "█" if "utf" in (getattr(sys.stderr, "encoding", "") or "").lower() else "#"
        # Other output to the terminal during the run is printed above the line.
        self._proxies = {name: _Above(getattr(sys, name), self) for name in ("stdout", "stderr")}
        for name, proxy in self._proxies.items():
            if _is_terminal(proxy.stream):
                setattr(sys, name, proxy)

    def _columns(self) -> int:
        try:
            columns = os.get_terminal_size(self._terminal.fileno()).columns
        except (OSError, ValueError):  # the terminal is gone
            columns = 0
        return (columns or 80) - 1  # a full line would move the cursor to the next one

    def _draw(self, progress: Progress) -> None:
        self._progress = progress
        if self._is_line_start:  # otherwise the line would be drawn into another one
            columns = self._columns()
            self._terminal.write(f"\r{line_with_bar(progress, columns, self._fill).ljust(columns)}")
            self._terminal.flush()
            self._is_drawn = True

    def print_above(self, stream: Any, text: str) -> int:
        """Write other output in place of the line, and the line again below it, if the output ends a line."""
        if self._is_drawn:
            self._terminal.write(f"\r{' ' * self._columns()}\r")
            self._terminal.flush()
        was_drawn, self._is_drawn = self._is_drawn, False
        written: int = stream.write(text)
        stream.flush()
        self._is_line_start = text.endswith(("\n", "\r")) if text else self._is_line_start
        if was_drawn and self._is_line_start:
            self._draw(self._progress)
        return written

    def close(self, progress: Progress | None = None) -> None:
        super().close(progress)
        for name, proxy in self._proxies.items():
            if getattr(sys, name) is proxy:  # otherwise other code has replaced it meanwhile
                setattr(sys, name, proxy.stream)
        if self._is_drawn:
            self._terminal.write("\n")
            self._terminal.flush()
        self._is_drawn, self._is_line_start = False, False  # a proxy that is still used only writes


class _Above:
    """A stream whose output is printed above the progress line.

    Args:
        stream: standard output or standard error.
        line: the progress line.
    """

    def __init__(self, stream: Any, line: TerminalLine) -> None:
        self.stream, self._line = stream, line

    def write(self, text: str) -> int:
        return self._line.print_above(self.stream, text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def open_display() -> Display:
    """The display for this process: of a notebook, of a terminal, or lines."""
    if _is_notebook():
        return NotebookOutput()
    is_plain = PLAIN_VARIABLE in os.environ or os.environ.get("TERM") == "dumb"
    return TerminalLine() if _is_terminal(sys.stderr) and not is_plain else LogLines()


def _is_terminal(stream: Any) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it is closed
        return False


def _is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


@contextlib.contextmanager
def counting(total: int, unit: str, label: str = "", is_shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show how many of `total` units a loop has done; yields a function that is called with a number of new units.

    Args:
        total: number of units.
        unit: what is counted, in the singular.
        label: what the loop does; "" where that is clear.
        is_shown: False for a loop that shows nothing.
    """
    if not is_shown:
        yield lambda units: None
        return
    display, clock = open_display(), Clock(time.monotonic)

    def progress() -> Progress:
        return Progress(clock.done, total, unit, label, rate=clock.rate(), left=clock.left(total))

    def add(units: int) -> None:
        clock.update(clock.done + units)
        if display.is_due():
            display.show(progress())

    try:
        yield add
    except BaseException:
        display.close()
        raise
    display.close(progress())
