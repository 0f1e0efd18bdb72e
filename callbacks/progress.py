"""One line of progress: the epoch, its ETA, and the metrics that matter."""

import math
import sys
from typing import Any

from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Lightning's tqdm bar; in a log file a new line only now and then, and after an error a line break."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else 100)

    @property
    def total_train_batches(self) -> int | float:
        """Lightning takes a batch for a step; a model may take several at once, and says how many."""
        steps = super().total_train_batches
        at_once = getattr(self.trainer.lightning_module, "steps_per_batch", 1)
        return steps if math.isinf(steps) else math.ceil(steps / at_once)

    def on_exception(self, *_: Any) -> None:
        print(file=sys.stderr)
