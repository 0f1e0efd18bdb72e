"""The folder of a run: its name, the checkpoint in it, the refusal to overwrite it, the config saved into it."""

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import SaveConfigCallback

from zoo.errors import UserError


def find_checkpoint(ckpt_path: str | None, output_dir: str | None) -> str | None:
    """The file that `--ckpt_path` means; `last` and `best` are those in the output folder.

    Raises:
        UserError: `last` or `best` without a known folder.
        FileNotFoundError: there is no such file.
    """
    if ckpt_path is not None and not ckpt_path.strip():
        raise UserError("--ckpt_path is empty: name a checkpoint, or drop it")
    if ckpt_path in ("last", "best"):
        if not output_dir or "{" in output_dir:
            where = f"which run of {output_dir} is meant" if output_dir else "the run's folder"
            raise UserError(f"--ckpt_path {ckpt_path} needs to know {where}: add --output_dir, or name the file")
        ckpt_path = str(Path(output_dir) / f"{ckpt_path}.ckpt")
    if ckpt_path and not Path(ckpt_path).exists():
        others = sorted(str(p) for p in Path(ckpt_path).parent.glob("*.ckpt"))
        hint = f"; there is {' and '.join(others)}" if others else ""
        raise FileNotFoundError(f"there is no checkpoint {ckpt_path}{hint}")
    return ckpt_path


def check_pattern(output_dir: str | None) -> None:
    """Raises UserError where `--output_dir` is empty, is a file, or has placeholders other than {data} and {time}."""
    if output_dir is None:
        return
    if not output_dir.strip() or "\0" in output_dir:
        raise UserError("--output_dir is empty: give a folder, or drop it")
    if unknown := [name for name in re.findall(r"\{[^{}]*\}", output_dir) if name not in ("{data}", "{time}")]:
        raise UserError(
            f"--output_dir {output_dir} has the unknown placeholder {unknown[0]}: the placeholders are {{data}}, the "
            "data's label, and {time}, the time of the start"
        )
    if Path(output_dir).is_file():
        raise UserError(f"--output_dir {output_dir} is a file: give a folder")


def fill_in(pattern: str, data_label: str) -> str:
    """An output folder with {data} replaced by the data's label and {time} by the time of the start.

    Raises:
        UserError: {time} under torchrun, whose processes would each have their own.
    """
    if "{time}" in pattern and "TORCHELASTIC_RUN_ID" in os.environ:
        raise UserError(f"under torchrun every process has its own time: give another --output_dir than {pattern}")
    now = time.strftime("%Y%m%d-%H%M%S")
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the other processes of this machine inherit it
        os.environ["ZOO_STARTED"] = now
    return pattern.replace("{data}", data_label).replace("{time}", os.environ.get("ZOO_STARTED", now))


def refuse_other_run(folder: Path, ckpt_path: str | None) -> None:
    """Raises UserError where the folder holds a run other than the one that is resumed."""
    runs = [name for name in ("last.ckpt", "best.ckpt") if (folder / name).exists()]
    is_resumed = ckpt_path is not None and Path(ckpt_path).resolve().parent == folder.resolve()
    if runs and not is_resumed:
        raise UserError(
            f"{folder} already holds a run ({runs[0]}): add --ckpt_path last to continue it, "
            "or give another --output_dir"
        )


def check_writable(folder: Path) -> None:
    """Raises OSError where nothing can be written into the folder: before training rather than after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {folder} ({error.strerror}): give another --output_dir") from error


class SaveConfig(SaveConfigCallback):
    """Write the run's settings into its folder, so that `--config FOLDER/config.yaml` repeats the run."""

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            config = self.config.clone()
            config.ckpt_path = None
            path = Path(trainer.default_root_dir) / "config.yaml"
            self.parser.save(config, path, skip_none=False, overwrite=True)
