"""Uploads of a folder to the Hugging Face hub, with a model card."""

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.files.checkpoints import read_checkpoint, write_checkpoint
from zoo.hub.connection import describe_hub_error, endpoint, hub_api, online
from zoo.hub.model_card import model_card
from zoo.hub.pull import CHECKPOINTS
from zoo.weights.downloads import is_repository
from zoo.weights.strip import without_training_state

CARD = "README.md"


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

    Of the folder of a run the best checkpoint is uploaded, without the state of its training, and the paths of local
    data in it are replaced by the names of the files; of any other folder, such as one that `zoo export` has written,
    all files. A README.md in the folder is uploaded as it is; otherwise one is generated from the checkpoint.

    Args:
        folder: the folder.
        repository: "owner/name".
        licence: the hub's identifier of the licence of the weights, such as "apache-2.0".
        checkpoint: the checkpoint that the model card describes. Default: that in the folder.
        config: the settings of the run, for the card.
        private: create the repository as a private one.
        dry: only print the model card and the names of the files.

    Returns:
        The address of the repository.

    Raises:
        UserError: the folder is missing or empty, the name or licence is none, or the hub refuses the upload.
    """
    if not is_repository(repository):
        raise UserError(f"{repository} is not the name of a repository on the hub: give OWNER/NAME")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the folder of a run, or one that was exported")
    own = next((folder / name for name in CHECKPOINTS if (folder / name).is_file()), None)
    described = checkpoint or own
    with tempfile.TemporaryDirectory(prefix="zoo-push-") as temporary:
        staged = Path(temporary)
        if own is not None:
            content = without_training_state(read_checkpoint(own, required=("state_dict", "zoo"), mmap=False))
            write_checkpoint(content, staged / CHECKPOINTS[0])
        else:
            for file in _visible_files(folder):
                target = staged / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(file.resolve())
        if not any(staged.iterdir()):
            raise UserError(f"{folder} has no files to upload: give the folder of a run, or one that was exported")
        if (folder / CARD).is_file():
            shutil.copyfile(folder / CARD, _replaced(staged / CARD))
        else:
            about = read_checkpoint(described, required=("state_dict", "zoo")) if described else {}
            (staged / CARD).write_text(model_card(repository, licence, about, config), encoding="utf-8")
        if dry:
            print((staged / CARD).read_text(encoding="utf-8"))
            print("files: " + ", ".join(sorted(p.relative_to(staged).as_posix() for p in _visible_files(staged))))
            return f"{endpoint()}/{repository}"
        return _upload(staged, repository, private)


def _replaced(path: Path) -> Path:
    path.unlink(missing_ok=True)
    return path


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
