"""When each config of the demo is trained: several at a time, each in a process with one thread."""

from collections.abc import Sequence
from pathlib import Path

from zoo.console.threads import available_cores

# Expected seconds of each config on one core; only their ratios count. Other configs count as the mean.
SECONDS = {
    "icr": 60, "icr_pool": 60, "llama": 77, "llama_classifier": 16, "mini_rlm": 8, "regress_lm": 37, "revdeq": 62,
}  # fmt: skip
MOST_PROCESSES = 4  # each takes about 700 MB


class Schedule:
    """The order of the configs, the longest first, and the time at which each starts.

    Args:
        configs: names or files of the configs.
        processes: number of configs that are trained at a time.

    Attributes:
        configs: the configs in their order.
        expected: expected seconds of each.
        starts: expected seconds from the start of the demo to that of each.
        end: expected seconds of the demo.
    """

    def __init__(self, configs: Sequence[str], processes: int) -> None:
        mean = sum(SECONDS.values()) / len(SECONDS)
        seconds = {config: SECONDS.get(Path(config).stem, mean) for config in configs}
        self.configs = sorted(configs, key=lambda config: -seconds[config]) if processes > 1 else list(configs)
        self.expected = [seconds[config] for config in self.configs]
        self.starts: list[float] = []
        ends = [0.0] * processes
        for expected in self.expected:  # the process that is free first takes the next config
            first = ends.index(min(ends))
            self.starts.append(ends[first])
            ends[first] += expected
        self.end = max(ends)


def default_processes() -> int:
    """Number of cores that this process may use, at most 4."""
    return min(available_cores(), MOST_PROCESSES)
