"""The folder of a run: its name, the checkpoint in it, the refusal to overwrite it, the config saved into it.

Nothing is written into the folder before the first training batch is finished, so that a command that is refused, also
because of its data, leaves no trace.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.cli import SaveConfigCallback

from zoo.errors import UserError
from zoo.files.atomic import OLD, complete_path, replacing
from zoo.files.checkpoint_folders import META, check_complete, is_checkpoint_folder
from zoo.files.remote_files import copy_with_neighbours, is_url, refuse_url
from zoo.private_apis.lightning_logger import DeferredTensorBoardLogger
from zoo.private_apis.lightning_trainer import set_default_root_dir
from zoo.weights import find_weights, is_project_weights


def find_checkpoint(ckpt_path: str | None, output_dir: str | None, verb: str = "") -> str | None:
    """The file that `--ckpt_path` means.

    `last` and `best` are those in the output folder, `auto` is `last` if it exists, `zoo:NAME` one of the zoo. The
    file at a URL is copied into the cache.

    Args:
        ckpt_path: the option.
        output_dir: the option, or a pattern with placeholders.
        verb: verb of the command, for the message about a folder.

    Raises:
        UserError: `last`, `best` or `auto` without a known folder; the folder of a run; a broken symbolic link; or a
            name of the zoo that it does not have.
        FileNotFoundError: the file does not exist.
    """
    if ckpt_path is None:
        return None
    if not ckpt_path.strip():
        raise UserError("--ckpt_path is empty: name a checkpoint, or drop it")
    if is_project_weights(ckpt_path):
        return find_weights(ckpt_path)
    if is_url(ckpt_path):
        return str(copy_with_neighbours(ckpt_path, "--ckpt_path"))
    if os.path.basename(ckpt_path) == META and is_checkpoint_folder(os.path.dirname(ckpt_path)):
        raise UserError(
            f"{ckpt_path} is one file of a checkpoint folder: give --ckpt_path {os.path.dirname(ckpt_path)}"
        )
    # The name of a file, with the suffix .old where a run was killed while it replaced a folder.
    if ckpt_path in ("last", "best", "auto"):
        if not output_dir or "{" in output_dir:
            where = f"which run of {output_dir} is meant" if output_dir else "the run's folder"
            raise UserError(f"--ckpt_path {ckpt_path} needs to know {where}: add --output_dir, or name the file")
        path = complete_path(Path(output_dir) / f"{ckpt_path.replace('auto', 'last')}.ckpt")
        if ckpt_path == "auto" and not os.path.lexists(path):
            return None
        ckpt_path = str(path)
    elif not os.path.lexists(ckpt_path):
        ckpt_path = str(complete_path(Path(ckpt_path)))
    # It is a file, or the folder of a sharded run.
    if os.path.islink(ckpt_path) and not Path(ckpt_path).exists():
        raise UserError(f"the checkpoint {ckpt_path} is a symbolic link to nothing: give the path of the file")
    if Path(ckpt_path).is_dir() and (files := [*map(str, Path(ckpt_path).glob("*.ckpt"))]):
        names = ("last", "best") if verb == "fit" else ("best", "last")  # a fit resumes from the last state
        preferred = [file for name in names for file in files if Path(file).stem == name]
        raise UserError(f"{ckpt_path} is the folder of a run: give --ckpt_path {(preferred or sorted(files))[0]}")
    if not Path(ckpt_path).exists():
        others = sorted(str(p) for p in Path(ckpt_path).parent.glob("*.ckpt"))
        hint = f"; there is {' and '.join(others)}" if others else ""
        raise FileNotFoundError(f"there is no checkpoint {ckpt_path}{hint}")
    check_complete(ckpt_path)
    return ckpt_path


def check_pattern(output_dir: str | None) -> None:
    """Raises UserError if `--output_dir` is empty, a URL or a file, or has placeholders but {data} and {time}."""
    if output_dir is None:
        return
    if not output_dir.strip() or "\0" in output_dir:
        raise UserError("--output_dir is empty: give a folder, or drop it")
    refuse_url("--output_dir", output_dir)
    if unknown := [name for name in re.findall(r"\{[^{}]*\}", output_dir) if name not in ("{data}", "{time}")]:
        raise UserError(
            f"--output_dir {output_dir} has the unknown placeholder {unknown[0]}: the placeholders are {{data}}, the "
            "data's label, and {time}, the time of the start"
        )
    if Path(output_dir).is_file():
        raise UserError(f"--output_dir {output_dir} is a file: give a folder")


def fill_in(pattern: str, data_label: str) -> str:
    """An output folder with {data} replaced by the data's label and {time} by the time of the start.

    Each process has its own time; `CommonFolder` gives all of them the folder of the first.
    """
    return pattern.replace("{data}", data_label).replace("{time}", time.strftime("%Y%m%d-%H%M%S"))


class CommonFolder(Callback):
    """Let all ranks use the output folder of the first, whose name may contain the time of its start."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if trainer.world_size > 1:
            set_default_root_dir(trainer, trainer.strategy.broadcast(str(trainer.default_root_dir)))


def refuse_other_run(folder: Path, ckpt_path: str | None, config_folder: Path | None = None) -> None:
    """Raises UserError if the folder holds a run other than the one that is resumed.

    Args:
        folder: folder of the checkpoints.
        ckpt_path: the checkpoint to resume from, if any.
        config_folder: where config.yaml is saved, which a run without checkpoints leaves there; None where it may be
            replaced, because the command is meant to start again.
    """
    names = ("last.ckpt", "best.ckpt", f"last.ckpt{OLD}", f"best.ckpt{OLD}")
    runs = [name for name in names if (folder / name).exists()]
    if ckpt_path is not None and Path(ckpt_path).resolve().parent == folder.resolve():
        return
    if runs:
        raise UserError(
            f"{folder} already holds a run ({runs[0]}): add --ckpt_path last to continue it, "
            "or give another --output_dir"
        )
    if config_folder is not None and os.path.lexists(config_folder / "config.yaml"):
        raise UserError(
            f"{config_folder} already holds the config.yaml of a run, which saved no checkpoint: remove it, or give "
            "another --output_dir"
        )


class EmptyFolders(Callback):
    """Remove the folders that a failed command has created and left empty.

    Args:
        folders: those into which the command writes.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.missing = list(missing_folders(folders))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if trainer.is_global_zero:
            remove_empty(self.missing)


def missing_folders(folders: Iterable[Path]) -> Iterator[Path]:
    """The folders and their parents that do not exist, each before its parents."""
    for folder in folders:
        yield from (path for path in (folder, *folder.parents) if not path.exists())


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders that exist and are empty; each before its parents."""
    for folder in folders:
        with contextlib.suppress(OSError):  # it does not exist, or is not empty
            folder.rmdir()


def start_logger(trainer: Any, with_hparams: bool = True) -> None:
    """Let the zoo's logger, if the Trainer has it, create its files; `with_hparams` also writes hparams.yaml."""
    if trainer.is_global_zero and isinstance(trainer.logger, DeferredTensorBoardLogger):
        trainer.logger.start(with_hparams)


class SaveConfig(SaveConfigCallback):
    """Write the run's settings into its folder, so that `--config FOLDER/config.yaml` repeats the run.

    This happens when the first batch, or the first step of a pretraining, is finished: before the first checkpoint, and
    not in a run that fails before.
    """

    text: str | None = None  # the settings, in a process of ddp_spawn
    comment: str | None = None  # first line of the file

    def __getstate__(self) -> dict[str, Any]:
        # ddp_spawn sends the callback to other processes, and a parser cannot be sent.
        text = self.parser.dump(self._saved_settings(), format="yaml", skip_none=False)
        return {**vars(self), "parser": None, "config": None, "text": text}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lightning would save the settings here."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.save_once(trainer, pl_module)

    def on_pretraining_step_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.save_once(trainer, pl_module)

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:  # before training only in a resumed run
            self.save_once(trainer, pl_module)
        elif trainer.state.fn == "validate":
            start_logger(trainer, with_hparams=False)

    def on_test_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        start_logger(trainer, with_hparams=False)

    def on_predict_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        start_logger(trainer, with_hparams=False)

    def save_once(self, trainer: Any, pl_module: Any) -> None:
        """Save the settings, and start the logger, unless that was done."""
        if self.already_saved:
            return
        self.already_saved = True
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")
            start_logger(trainer)

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        path = Path(trainer.default_root_dir) / "config.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            if self.text is None:
                self.parser.save(self._saved_settings(), partial, format="yaml", skip_none=False, overwrite=True)
            else:
                partial.write_text(self.text, encoding="utf-8")
            if self.comment is not None:
                partial.write_text(f"# {self.comment}\n{partial.read_text(encoding='utf-8')}", encoding="utf-8")

    def _saved_settings(self) -> Any:
        config = self.config.clone()
        config.pop("ckpt_path", None)  # a null would override --ckpt_path in front of --config
        return config
