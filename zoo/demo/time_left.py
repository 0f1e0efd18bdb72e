"""The time that the rest of the demo takes: expected seconds of each config, scaled by the speed so far."""

import time
from collections.abc import Callable
from typing import Any

from zoo.callbacks import Progress
from zoo.console.progress_text import format_seconds
from zoo.demo.schedule import Schedule


class TimeLeft:
    """Seconds until all configs of a demo are trained.

    Args:
        schedule: when each config is trained.
        started: `time.time()` at the start of the demo.
        now: seconds since the epoch.
    """

    def __init__(self, schedule: Schedule, started: float, now: Callable[[], float] = time.time) -> None:
        self.schedule, self.started = schedule, started
        self._now = now

    def seconds(self, place: int, share: float) -> float | None:
        """Seconds that are left; None before anything is done.

        Args:
            place: place of the config that is trained at the moment, from 0 on.
            share: share of its training that is done, from 0 to 1.
        """
        starts, expected = self.schedule.starts, self.schedule.expected
        reached = starts[place] + share * expected[place]
        if not reached:
            return None
        return max(self._now() - self.started, 0.0) * (self.schedule.end - reached) / reached


class DemoProgress(Progress):
    """The progress of one model of the demo, with the time left of all.

    Args:
        label: name of the model, such as "model 2 of 7".
        place: place of the model, from 0 on.
        time_left: the estimate for the demo.
    """

    def __init__(self, label: str, place: int, time_left: TimeLeft) -> None:
        super().__init__(label)
        self.place, self.time_left = place, time_left

    def line_label(self, share: float | None) -> str:
        seconds = self.time_left.seconds(self.place, share or 0.0)
        return self.label if seconds is None else f"{self.label}, {format_seconds(seconds)} left for all"

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "time_left": None}
