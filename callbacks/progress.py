"""One line of progress: the epoch, its ETA, and the metrics that matter."""

import sys
from typing import Any

from lightning.pytorch.callbacks import TQDMProgressBar


class Progress(TQDMProgressBar):
    """Lightning's tqdm bar; in a log file a new line only now and then, and after an error a line break."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=1 if sys.stdout.isatty() else 100)

    def on_exception(self, *_: Any) -> None:
        print(file=sys.stderr)
