"""The time that the rest of the demo takes: expected seconds of each config, scaled by the speed so far."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zoo.callbacks import Progress
from zoo.console.progress_text import format_seconds

# Expected seconds of each config; only their ratios count. Other configs count as the mean.
SECONDS = {
    "icr": 50, "icr_pool": 50, "llama": 53, "llama_classifier": 11, "mini_rlm": 9, "regress_lm": 35, "revdeq": 48,
}  # fmt: skip


class TimeLeft:
    """Seconds until all configs of a demo are trained.

    Args:
        configs: names or files of the configs, in their order.
        now: seconds of a monotonic clock.
    """

    def __init__(self, configs: Sequence[str], now: Callable[[], float]) -> None:
        mean = sum(SECONDS.values()) / len(SECONDS)
        self.expected = [SECONDS.get(Path(config).stem, mean) for config in configs]
        self._now, self._start = now, now()

    def seconds(self, place: int, share: float) -> float | None:
        """Seconds that are left; None before anything is done.

        Args:
            place: of the config that is trained at the moment, from 0 on.
            share: share of its training that is done, from 0 to 1.
        """
        done = sum(self.expected[:place]) + share * self.expected[place]
        if not done:
            return None
        return (self._now() - self._start) * (sum(self.expected) - done) / done


class DemoProgress(Progress):
    """The progress of one model of the demo, with the time left of all.

    Args:
        label: name of the model, such as "model 2 of 7".
        place: of the model, from 0 on.
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
