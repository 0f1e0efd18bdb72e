"""The text of a progress line: done and total, a bar where there is space, speed, time left, and metrics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tqdm import tqdm

WIDEST_BAR = 30  # characters
NARROWEST_BAR = 5


@dataclass
class Progress:
    """The values that a progress line shows.

    Args:
        done: number of units that are done.
        total: number of units of the run; None if it is not known.
        unit: what is counted, in the singular.
        label: name of the run among several, such as "trial 2 of 20"; "" for a single one.
        activity: what is done meanwhile, such as "validation, batch 3 of 20".
        rate: units per second; None before it is known.
        left: seconds that are left; None if they are not known.
        share: share of the run that is done, from 0 to 1, where it is not done / total.
        values: metrics by name.
    """

    done: int
    total: int | None = None
    unit: str = "step"
    label: str = ""
    activity: str = ""
    rate: float | None = None
    left: float | None = None
    share: float | None = None
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def done_share(self) -> float | None:
        """The share of the run that is done, between 0 and 1; None if its end is not known."""
        share = self.share
        if share is None and self.total is not None:
            share = self.done / self.total if self.total else 1.0
        return None if share is None else min(max(share, 0.0), 1.0)


def full_line(progress: Progress) -> str:
    """The line for a log file, without a bar.

    >>> full_line(Progress(400, 2000, rate=45.23, left=36, values={"train_loss": 1.25}))
    'step 400 of 2,000, 20 %, 45.2 steps/s, 00:36 left, train_loss 1.25'
    """
    of_total = "" if progress.total is None else f" of {max(progress.total, progress.done):,}"
    share = [] if progress.done_share is None else [f"{int(100 * progress.done_share)} %"]
    return ", ".join([_start(progress) + of_total, *share, *_details(progress, f" {plural(progress.unit)}")])


def line_with_bar(progress: Progress, columns: int, fill: str = "█") -> str:
    """The line for a terminal, at most `columns` wide: details that do not fit are left out, the last ones first."""
    start, share, details = _start(progress), progress.done_share, _details(progress)
    if progress.total is not None:
        start += f"/{max(progress.total, progress.done):,}"
    if share is not None:
        start += f" {int(100 * share)} %"
    for n_details in range(len(details), -1, -1):
        tail = ", ".join(details[:n_details])
        width = min(WIDEST_BAR, columns - len(f"{start} || {tail}"))
        if share is None and len(line := f"{start}, {tail}".rstrip(", ")) <= columns:
            return line
        if share is not None and width >= NARROWEST_BAR:
            return f"{start} |{(fill * int(share * width)).ljust(width)}| {tail}".rstrip()
    return start[:columns]


def plural(unit: str) -> str:
    """The plural of a unit.

    >>> plural("step"), plural("batch")
    ('steps', 'batches')
    """
    return f"{unit}es" if unit.endswith("ch") else f"{unit}s"


def _start(progress: Progress) -> str:
    label = f"{progress.label}: " if progress.label else ""
    return f"{label}{progress.unit} {progress.done:,}"


def _details(progress: Progress, units: str = "") -> list[str]:
    """Speed, time left, activity and metrics: the most important first."""
    details = []
    if progress.rate:
        per_second = progress.rate >= 1
        number = f"{progress.rate if per_second else 1 / progress.rate:.3g}"
        details.append(f"{number}{units}/s" if per_second else f"{number} s/{progress.unit}")
    if progress.left is not None:
        details.append(f"{format_seconds(progress.left)} left")
    if progress.activity:
        details.append(progress.activity)
    return details + [f"{name} {_number(value)}" for name, value in progress.values.items()]


def _number(value: float) -> str:
    return f"{value:,.0f}" if 10_000 <= abs(value) < 1e12 else f"{value:.4g}"


def format_seconds(seconds: float) -> str:
    """Minutes and seconds, "01:05", from one hour on with hours, "1:02:03"."""
    return tqdm.format_interval(max(seconds, 0.0))


class Clock:
    """Speed of a run and the time that its rest takes, without the first unit, which is slower than others.

    Args:
        now: seconds of a monotonic clock.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.restart(0)

    def restart(self, done: int) -> None:
        """Start at a number of units, for instance when a run is resumed."""
        self.done = self._first = done
        self._begin: float | None = None  # the end of the first unit
        self._paused = 0.0
        self._pause_start: float | None = None

    def update(self, done: int) -> None:
        """Set the number of units that are done."""
        self.done = done
        if self._begin is None and done > self._first:
            self._first, self._begin = done, self._now()

    def pause(self) -> None:
        """Begin something that does not count for the speed, but for the time that is left, such as a validation."""
        self._pause_start = self._now()

    def resume(self) -> None:
        """End what `pause` began."""
        if self._pause_start is not None and self._begin is not None:
            self._paused += self._now() - max(self._pause_start, self._begin)
        self._pause_start = None

    def rate(self) -> float | None:
        """Units per second, without pauses."""
        if self._begin is None or self.done <= self._first:
            return None
        now = self._now() if self._pause_start is None else self._pause_start
        return (self.done - self._first) / max(now - self._begin - self._paused, 1e-9)

    def left(self, total: int | None) -> float | None:
        """Seconds until `total` units are done, at the mean speed with pauses."""
        if total is None or self._begin is None or self.done <= self._first:
            return None
        return (total - self.done) * (self._now() - self._begin) / (self.done - self._first)
