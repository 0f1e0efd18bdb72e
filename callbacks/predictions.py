"""Predictions as JSON lines, written batch by batch."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.errors import UserError
from zoo.files.atomic import remove_stale, temporary_path
from zoo.files.locks import owned_lock
from zoo.text_formats.json_text import dump_json


class Predictions(Callback):
    """Write the dictionaries that `predict_step` returns for each batch, one line each, in input order.

    Each rank writes its share of the data: `predictions.jsonl` in one process, `predictions-rank<r>.jsonl` in several.
    A line's `index` is its position in the whole input. A number that is NaN or infinite is written as null. The file
    gets its name when it is complete; until then a lock keeps other processes from writing the same file.

    Args:
        path: file of the predictions. Default: `predictions.jsonl` in the run's folder.
        text_path: second file, of lines `label ||| text` in the format of CMU's minllama course, for models that
            predict a "label". Default: none.
    """

    def __init__(self, path: str | None = None, text_path: str | None = None) -> None:
        self.path, self.text_path = path, text_path
        self.files: dict[Path, TextIO] = {}
        self._temporary: dict[Path, Path] = {}
        self._locks = contextlib.ExitStack()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.files, self._temporary = {}, {}
        # Open all files before the first batch, so that a path that cannot be written is an error at once.
        names = [f"{trainer.default_root_dir}/predictions.jsonl" if self.path is None else self.path, self.text_path]
        for name in names:
            if name is None:
                continue
            option = "predictions.text_path" if self.files else "predictions.path"
            path = Path(name)
            if not name.strip() or "\0" in name or path.is_dir():
                what = "a folder" if path.is_dir() and name.strip() else "no name of a file"
                raise UserError(f"--{option} {name!r} is {what}: give the path of a file")
            if trainer.world_size > 1:
                path = path.with_stem(f"{path.stem}-rank{trainer.global_rank}")
            if path in self.files:
                raise UserError(f"{path} cannot hold both kinds of lines: give another --predictions.text_path")
            if path.exists():
                raise UserError(f"{path} exists already: move it away, or give another --{option}")
            with _named(path, f": give another --{option}"):
                if path.parent.exists() and not path.parent.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = owned_lock(path.with_name(f".{path.name[:40]}.lock"), f"another process writes {path}")
                self._locks.enter_context(lock)
                remove_stale(path)
                self._temporary[path] = temporary_path(path)
                self.files[path] = open(self._temporary[path], "w", encoding="utf-8")  # noqa: SIM115 - closed at the end

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        # One JSON object per row, and one line `label ||| text` in the second file.
        for number, (path, file) in enumerate(self.files.items()):
            if number and any("label" not in row for row in outputs):
                raise UserError(f"{type(pl_module).__name__} predicts no label: drop --predictions.text_path")
            with _named(path):
                file.writelines(_text_line(row) if number else _json_line(row) for row in outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        print(file=sys.stderr)
        for path, file in self.files.items():
            with _named(path):
                file.flush()
                os.fsync(file.fileno())
                file.close()
                self._temporary[path].replace(path)
            print(path, file=sys.stderr)
        self._locks.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with self._locks:
            for path, file in self.files.items():
                with contextlib.suppress(OSError):  # a full disk, which is the exception already
                    file.close()
                self._temporary[path].unlink(missing_ok=True)


def _json_line(row: dict[str, Any]) -> str:
    return dump_json(row, ensure_ascii=False) + "\n"


def _text_line(row: dict[str, Any]) -> str:
    return f"{row['label']} ||| {' '.join(row['input'].split())}\n"


@contextlib.contextmanager
def _named(path: Path, remedy: str = "") -> Iterator[None]:
    """Raise an OSError of the block with the name of the file of predictions."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror or error}){remedy}") from error
