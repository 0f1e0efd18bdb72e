"""Predictions as JSON lines, written batch by batch."""

import contextlib
import errno
import heapq
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.errors import UserError
from zoo.files.atomic import remove_stale, replacing, temporary_path
from zoo.files.locks import owned_lock
from zoo.files.remote_files import refuse_url
from zoo.private_apis.lightning_trainer import predict_on_every_rank
from zoo.text_formats.json_text import dump_json


class Predictions(Callback):
    """Write the dictionaries that `predict_step` returns for each batch, one line each, in input order.

    A line's `index` is its position in the input. A number that is NaN or infinite is written as null. The file gets
    its name when it is complete; until then a lock keeps other processes from writing the same file. Of several ranks
    each writes its share into a temporary file, and the first merges these by `index`. Where it cannot read the files
    of another machine, they remain as `predictions-rank<r>.jsonl`.

    Args:
        path: file of the predictions. Default: `predictions.jsonl` in the run's folder.
        text_path: second file, of lines `label ||| text` in the format of CMU's minllama course, for models that
            predict a "label". Default: none.
        overwrite: replace existing files when the new ones are complete; also `--overwrite`. Only empty files and
            earlier predictions are replaced, and no file that the prediction reads; lines `label ||| text` are
            earlier predictions if the JSON lines at `path` have the same labels and texts. Default: refuse.
    """

    def __init__(self, path: str | None = None, text_path: str | None = None, overwrite: bool = False) -> None:
        self.path, self.text_path, self.overwrite = path, text_path, overwrite
        self.files: dict[Path, TextIO] = {}
        self._temporary: dict[Path, Path] = {}
        self._written: list[Path] = []  # complete, and not printed yet
        self._locks = contextlib.ExitStack()

    def main_path(self, trainer: Trainer) -> str:
        """The file of JSON lines."""
        return f"{trainer.default_root_dir}/predictions.jsonl" if self.path is None else self.path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "predict":
            predict_on_every_rank(trainer)  # all take part in the merge

    def check(self, trainer: Trainer, module: LightningModule, data: Any, ckpt_path: Any) -> list[Path]:
        """The files to write, after a look at what exists; the command line calls it before the data is read.

        Args:
            trainer: trainer that predicts.
            module: files that its arguments name are inputs.
            data: the data module, or None; its files are inputs.
            ckpt_path: path of the checkpoint of the model, an input too.

        Raises:
            UserError: a path is no name of a file, or names a file that is not to be replaced.
        """
        paths: list[Path] = []
        for name in (self.main_path(trainer), self.text_path):
            if name is None:
                continue
            option = "predictions.text_path" if paths else "predictions.path"
            refuse_url(f"--{option}", name)
            path = Path(name)
            if not name.strip() or "\0" in name or path.is_dir():
                what = "a folder" if path.is_dir() and name.strip() else "not a name of a file"
                raise UserError(f"--{option} {name!r} is {what}: give the path of a file")
            if any(path.resolve() == other.resolve() for other in paths):
                raise UserError(f"{path} cannot hold both kinds of lines: give another --predictions.text_path")
            main = paths[0] if paths else None
            if path.exists() and (reason := _why_not_replaced(path, main, module, data, ckpt_path)):
                raise UserError(f"{path} {reason}: give another --{option}")
            if path.exists() and not self.overwrite:
                raise UserError(f"{path} exists already: add --overwrite to replace it, or give another --{option}")
            paths.append(path)
        return paths

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.files, self._temporary = {}, {}
        # Open all files before the first batch, so that a path that cannot be written is an error before any work.
        for path in self.check(trainer, pl_module, getattr(trainer, "datamodule", None), trainer.ckpt_path):
            with _named(path, f": give another --predictions.{'text_path' if self.files else 'path'}"):
                if path.parent.exists() and not path.parent.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                path.parent.mkdir(parents=True, exist_ok=True)
                if trainer.is_global_zero:
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
        for path, file in self.files.items():
            with _named(path):
                file.flush()
                os.fsync(file.fileno())
                file.close()
        written = [*self.files]
        if trainer.world_size > 1:
            written = self._merge(trainer)
        else:
            for path in written:
                with _named(path):
                    self._temporary[path].replace(path)
        self._written = written
        self._locks.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # After the last progress line, which another callback shows at the end of the prediction.
        for path in self._written:
            print(path, file=sys.stderr)
        self._written = []

    def _merge(self, trainer: Trainer) -> list[Path]:
        """Merge the files of all ranks in the first; returns the files that this rank has made."""
        own = [str(self._temporary[path].absolute()) for path in self.files]
        of_ranks: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(of_ranks, own)
        is_shared = trainer.strategy.broadcast(all(os.path.exists(part) for parts in of_ranks for part in parts))
        if not is_shared:
            for path in self.files:
                self._temporary[path].replace(path.with_stem(f"{path.stem}-rank{trainer.global_rank}"))
            return [path.with_stem(f"{path.stem}-rank{trainer.global_rank}") for path in self.files]
        if trainer.is_global_zero:
            merge_parts([*self.files], of_ranks)
        trainer.strategy.barrier("predictions are merged")
        for part in own:
            os.unlink(part)
        return [*self.files] if trainer.is_global_zero else []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with self._locks:
            for path, file in self.files.items():
                with contextlib.suppress(OSError):  # a full disk, which is the exception already
                    file.close()
                self._temporary[path].unlink(missing_ok=True)


def merge_parts(targets: list[Path], parts: list[list[str]]) -> None:
    """Merge the rows that ranks have written, in the order of their index.

    Args:
        targets: the files to write: JSON lines, and perhaps a second one with a line for each row of the first.
        parts: for each rank its part of every target.
    """
    with contextlib.ExitStack() as stack:
        files = [[stack.enter_context(open(part, encoding="utf-8")) for part in of_rank] for of_rank in parts]
        rows = heapq.merge(*(zip(*of_rank, strict=True) for of_rank in files), key=_index)
        partials = [stack.enter_context(replacing(target, durable=True)) for target in targets]
        outputs = [stack.enter_context(open(partial, "w", encoding="utf-8")) for partial in partials]
        for row in rows:
            for output, line in zip(outputs, row, strict=True):
                output.write(line)


def _why_not_replaced(path: Path, main: Path | None, module: Any, data: Any, ckpt_path: Any) -> str | None:
    """Why an existing file is never replaced, also with overwrite=True; None for an empty file or old predictions.

    Args:
        path: the file.
        main: the JSON lines, if `path` is the file of lines `label ||| text`; else None.
        module: files that its arguments name are inputs.
        data: the data module; its data is a file, a folder, or a prefix of file names.
        ckpt_path: another input.
    """
    settings = [getattr(part, "hparams", {}) for part in (data, module)]
    inputs = [ckpt_path, *(value for part in settings for value in part.values())]
    for name in inputs:
        given = Path(os.path.expanduser(name)) if isinstance(name, str | Path) and "\0" not in str(name) else None
        with contextlib.suppress(OSError):  # texts that cannot be the name of a file
            if given and given.exists() and given.samefile(path):
                return "is an input of this prediction"
    given = Path(os.path.expanduser(str(settings[0].get("data") or "\0")))
    with contextlib.suppress(OSError, ValueError):  # the name of a data set, or no path at all
        if given.is_dir() and given.samefile(path.resolve().parent):
            return "is in the folder of the data"
        # Of a prefix, the names of the files continue that of the data with -, _ or a dot.
        name, is_prefix = path.resolve().name, not given.exists() and given.parent.is_dir()
        if (
            is_prefix
            and given.parent.samefile(path.resolve().parent)
            and re.match(rf"{re.escape(given.name)}[-_.]", name)
        ):
            return "is one of the files of the data"
    return None if path.is_file() and _is_replaceable(path, main) else "is not a file of earlier predictions"


def _is_replaceable(path: Path, main: Path | None) -> bool:
    """Whether a file is empty or has earlier predictions.

    Lines `label ||| text` may be anybody's labels, so they must be those of the predictions in the JSON lines `main`.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        if main is None:
            line = file.readline()
            row = _parse_row(line)
            return not line or type(row.get("index")) is int or {"tokens", "loss"} <= row.keys()
        if not file.readline():
            return True
        file.seek(0)
        if not main.is_file():
            return False
        with open(main, encoding="utf-8", errors="replace") as rows:
            return all(
                line == _text_line(_parse_row(row)) for line, row in itertools.zip_longest(file, rows, fillvalue="")
            )


def _parse_row(line: str) -> dict[str, Any]:
    """The object in a line of JSON; {} if it has none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _index(lines: tuple[str, ...]) -> int:
    """The index in a row's JSON line; 0 for a row without one, so that such rows keep the order of the ranks."""
    index = json.loads(lines[0]).get("index")
    return index if isinstance(index, int) else 0


def _json_line(row: dict[str, Any]) -> str:
    return dump_json(row, ensure_ascii=False) + "\n"


def _text_line(row: dict[str, Any]) -> str:
    return f"{row.get('label')} ||| {' '.join(str(row.get('input')).split())}\n"


@contextlib.contextmanager
def _named(path: Path, remedy: str = "") -> Iterator[None]:
    """Raise an OSError of the block with the name of the file of predictions."""
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror or error}){remedy}") from error
