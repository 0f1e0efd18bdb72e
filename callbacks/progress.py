"""Progress bar: epoch, remaining time, metrics."""

import sys
from typing import Any

from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Lightning's tqdm bar, refreshed every 100 steps in a log file, with a line break after an error."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else 100)

    def on_exception(self, *_: Any) -> None:
        print(file=sys.stderr)
