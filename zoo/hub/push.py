"""Uploads of a folder to the Hugging Face hub, with a model card."""

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.files.checkpoint_folders import is_checkpoint_folder
from zoo.files.checkpoints import read_checkpoint, write_checkpoint
from zoo.files.safetensors_checkpoints import (
    is_safetensors_checkpoint,
    read_safetensors_checkpoint,
    write_safetensors_checkpoint,
)
from zoo.hub.connection import describe_hub_error, endpoint, hub_api, online
from zoo.hub.model_card import model_card
from zoo.hub.pull import CHECKPOINTS
from zoo.text_formats.json_text import describe_json_error, parse_object
from zoo.weights.downloads import is_repository
from zoo.weights.strip import without_paths, without_training_state

CARD = "README.md"
SETTINGS = ("config.json", "tokenizer_config.json", "adapter_config.json")  # may hold the path they were loaded from


def push(
    folder: Path,
    repository: str,
    licence: str,
    checkpoint: Path | None = None,
    config: Mapping[str, Any] | None = None,
    private: bool = False,
    dry: bool = False,
) -> str:
    """Upload a folder as one commit to a repository of the hub, which is created where it does not exist.

    Of the folder of a run the best checkpoint is uploaded, or the one that is given, without the state of its training;
    of any other folder, such as one that `zoo export` has written, all files. Local paths in a checkpoint are replaced
    by the names of the files. A README.md in the folder is uploaded as it is; otherwise one is generated from the
    checkpoint.

    Args:
        folder: the folder.
        repository: "owner/name".
        licence: the hub's identifier of the licence of the weights, such as "apache-2.0".
        checkpoint: of the folder of a run, the checkpoint to upload; of files in other formats, the checkpoint that the
            model card describes. Default: the best one in the folder.
        config: the settings of the run, for the card.
        private: create the repository as a private one.
        dry: only print the model card and the names of the files.

    Returns:
        The address of the repository.

    Raises:
        UserError: the folder is missing or empty, the name or licence is none, the checkpoint is not in the folder or
            consists of several files, or the hub refuses the upload.
    """
    if not is_repository(repository):
        raise UserError(f"{repository} is not the name of a repository on the hub: give OWNER/NAME")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the folder of a run, or one that was exported")
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", licence):
        raise UserError(f"--licence {licence!r} is no licence: give the hub's name of one, such as apache-2.0")
    own = _checkpoint_of(folder, checkpoint)
    described = own or checkpoint
    with tempfile.TemporaryDirectory(prefix="zoo-push-") as temporary:
        staged = Path(temporary)
        if own is not None:
            _publish(own, staged / CHECKPOINTS[0])
        elif is_safetensors_checkpoint(folder):
            content = without_training_state(read_safetensors_checkpoint(folder))
            write_safetensors_checkpoint(content, staged)
            described = folder
        else:
            _stage(folder, staged)
        if not any(staged.iterdir()):
            raise UserError(f"{folder} has no files to upload: give the folder of a run, or one that was exported")
        if (folder / CARD).is_file():
            (staged / CARD).unlink(missing_ok=True)  # it may be a link to that file
            shutil.copyfile(folder / CARD, staged / CARD)
        else:
            about = read_checkpoint(described, required=("state_dict", "zoo")) if described else {}
            card = model_card(repository, licence, about, config, _other_format(staged))
            (staged / CARD).write_text(card, encoding="utf-8")
        if dry:
            print((staged / CARD).read_text(encoding="utf-8"))
            print("files: " + ", ".join(sorted(p.relative_to(staged).as_posix() for p in _visible_files(staged))))
            return f"{endpoint()}/{repository}"
        return _upload(staged, repository, private)


def _checkpoint_of(folder: Path, given: Path | None) -> Path | None:
    """The checkpoint to upload: the given one, or the best one in the folder; None for files in other formats.

    Raises:
        UserError: the given one is not that of the folder, or the checkpoint is a folder of a sharded run.
    """
    files = [
        path for path in (*(folder / name for name in CHECKPOINTS), *sorted(folder.glob("*.ckpt"))) if path.exists()
    ]
    is_run = any(path.name in CHECKPOINTS for path in files)
    has_own = files or is_safetensors_checkpoint(folder)
    if given is not None and has_own and not any(path.samefile(given) for path in files or [folder]):
        raise UserError(
            f"{given} is not a checkpoint in {folder}, whose own would be uploaded: give the folder that holds it, "
            "or drop --ckpt_path"
        )
    if not is_run:
        return None
    given = given or files[0]
    if given is not None and is_checkpoint_folder(given):
        full = given.with_name(f"{given.stem}-full{given.suffix}")
        raise UserError(
            f"{given} is a checkpoint of several files: run `zoo consolidate --ckpt_path {given}`, and add --ckpt_path "
            f"{full}"
        )
    return given


def _publish(checkpoint: Path, target: Path) -> None:
    """Write a checkpoint without the state of its training and without local paths."""
    content = without_training_state(read_checkpoint(checkpoint, required=("state_dict", "zoo"), mmap=False))
    write_checkpoint(content, target)


def _stage(folder: Path, staged: Path) -> None:
    """Link the files of a folder into another; checkpoints and configs are written there without local paths.

    Raises:
        UserError: it is the folder of a run without a checkpoint, or a file of settings is damaged.
    """
    if (folder / "config.yaml").is_file():
        raise UserError(f"{folder} is a run without {' or '.join(CHECKPOINTS)}: there is nothing to upload")
    for file in _visible_files(folder):
        target = staged / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".ckpt":
            _publish(file, target)
        elif file.name in SETTINGS:
            try:
                settings = parse_object(file.read_bytes())
            except ValueError as error:
                raise UserError(f"{file} is damaged ({describe_json_error(error)}): export or copy it again") from None
            changed = {
                name: without_paths(value) if name.endswith(("path", "file")) else value
                for name, value in settings.items()
            }
            if changed != settings:
                target.write_text(json.dumps(changed, indent=2) + "\n", encoding="utf-8")
        if not target.exists():
            target.symlink_to(file.resolve())


def _other_format(folder: Path) -> str | None:
    """The format of an export that the zoo does not read; None for any other folder."""
    formats = {file.suffix.lower() for file in folder.rglob("*")} & {".onnx", ".gguf"}
    return min(formats).removeprefix(".") if formats else None


def _visible_files(folder: Path) -> list[Path]:
    """The files of a folder and its subfolders, without hidden ones."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def _upload(folder: Path, repository: str, private: bool) -> str:
    if not online():
        raise UserError(f"the hub cannot be reached, so that {repository} cannot be written: check the connection")
    api: Any = hub_api()
    try:
        url = api.create_repo(repository, private=private or None, exist_ok=True)
        print(f"uploading {len(_visible_files(folder))} files to {url}", file=sys.stderr, flush=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload with zoo push")
    except Exception as error:  # of several libraries, for permissions and connections
        raise UserError(describe_hub_error(error, repository)) from error
    return str(url)
