"""Predictions as JSON lines, written batch by batch."""

import sys
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.errors import UserError
from zoo.text_formats.json_text import dump_json


class Predictions(Callback):
    """Write the dictionaries that `predict_step` returns for each batch, one line each, in input order.

    Each rank writes its share of the data: `predictions.jsonl` in one process, `predictions-rank<r>.jsonl` in several.
    A line's `index` is its position in the whole input. A number that is NaN or infinite is written as null. The file
    gets its name when it is complete.

    Args:
        path: file of the predictions. Default: `predictions.jsonl` in the run's folder.
        text_path: second file, of lines `label ||| text` in the format of CMU's minllama course, for models that
            predict a "label". Default: none.
    """

    def __init__(self, path: str | None = None, text_path: str | None = None) -> None:
        self.path, self.text_path = path, text_path
        self.files: dict[Path, TextIO] = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.files = {}
        # Open all files before the first batch, so that a path that cannot be written is an error at once.
        names = [self.path or f"{trainer.default_root_dir}/predictions.jsonl", self.text_path]
        for path in (Path(name) for name in names if name):
            if trainer.world_size > 1:
                path = path.with_stem(f"{path.stem}-rank{trainer.global_rank}")
            if path in self.files:
                raise UserError(f"{path} cannot hold both kinds of lines: give another --predictions.text_path")
            if path.exists():
                option = "predictions.text_path" if self.files else "predictions.path"
                raise UserError(f"{path} exists already: move it away, or give another --{option}")
            path.parent.mkdir(parents=True, exist_ok=True)
            self.files[path] = open(_partial(path), "w", encoding="utf-8")  # noqa: SIM115 - closed when prediction ends

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        # One JSON object per row, and one line `label ||| text` in the second file.
        lines, *texts = self.files.values()
        for row in outputs:
            lines.write(dump_json(row, ensure_ascii=False) + "\n")
            for file in texts:
                if "label" not in row:
                    raise UserError(f"{type(pl_module).__name__} predicts no label: drop --predictions.text_path")
                file.write(f"{row['label']} ||| {' '.join(row['input'].split())}\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        print(file=sys.stderr)
        for path, file in self.files.items():
            file.close()
            _partial(path).replace(path)
            print(path, file=sys.stderr)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        for path, file in self.files.items():
            if not file.closed:
                file.close()
                _partial(path).unlink()


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
