"""Progress bar: epoch, remaining time, metrics."""

import math
import sys
from typing import Any

from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Lightning's tqdm bar, refreshed every 100 steps in a log file, with a line break after an error."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else 100)

    @property
    def total_train_batches(self) -> int | float:
        """Number of steps; `pl_module.steps_per_batch`, by default 1, is how many steps a batch contains."""
        steps = super().total_train_batches
        at_once = getattr(self.trainer.lightning_module, "steps_per_batch", 1)
        return steps if math.isinf(steps) else math.ceil(steps / at_once)

    def on_exception(self, *_: Any) -> None:
        print(file=sys.stderr)
