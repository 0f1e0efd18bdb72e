"""Predictions as JSON lines, written while they come."""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer


class Predictions(Callback):
    """Write what `predict_step` returns, a list of dictionaries per batch, one line each, in input order.

    Each rank writes the share of the data that it saw: `predictions.jsonl` in one process,
    `predictions-rank<r>.jsonl` in several. A line's `index` is its place in the whole input. The file appears under
    its name when it is complete.

    Args:
        path: the file; None for `predictions.jsonl` in the Trainer's `default_root_dir`.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.file: TextIO | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.target = Path(self.path or Path(trainer.default_root_dir) / "predictions.jsonl")
        if trainer.world_size > 1:
            self.target = self.target.with_stem(f"{self.target.stem}-rank{trainer.global_rank}")
        if self.target.exists():
            raise ValueError(f"{self.target} is there already: move it away, or give another --predictions.path")
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.partial = self.target.with_name(self.target.name + ".tmp")
        self.file = open(self.partial, "w", encoding="utf-8")  # noqa: SIM115 - closed when prediction ends

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        assert self.file is not None
        for line in outputs:
            self.file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.file is not None
        self.file.close()
        self.partial.replace(self.target)
        print(f"\n{self.target}", file=sys.stderr)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self.file is not None and not self.file.closed:
            self.file.close()
            self.partial.unlink()
