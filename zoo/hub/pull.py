"""Downloads of weights from the Hugging Face hub: resumable, with every file's digest compared with the hub's.

Only the files that the zoo reads are downloaded: weights in safetensors, llama2.c's .bin, or a checkpoint of the zoo;
config and tokenizer. No file is executed, and pickled weights (pytorch_model.bin) are not downloaded.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from zoo.errors import UserError
from zoo.files.atomic import replace_path
from zoo.files.locks import owned_lock
from zoo.files.safetensors_names import CONTENT, TENSORS
from zoo.hub.connection import describe_hub_error, download, hub_api, online, show_progress
from zoo.weights.downloads import LIST, is_repository, read_list, weights_cache
from zoo.weights.table import LLAMA2_TOKENIZER, PUBLIC, WEIGHTS

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
)  # fmt: skip
CONFIG_FILES = ("config.json", "generation_config.json")
WEIGHT_FILES = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
WANTED = "zoo_wanted.json"  # in the folder of an unfinished download: the files that it consists of
INDEX = "model.safetensors.index.json"
CHECKPOINTS = ("best.ckpt", "last.ckpt")  # of the zoo, in the order of preference


class HubFile(NamedTuple):
    """A file on the hub.

    Args:
        name: path in the repository.
        size: bytes.
        sha256: its digest, for files in the hub's storage of large files.
        git_sha1: its digest as git computes it, for other files.
    """

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None


class Snapshot(NamedTuple):
    """A repository at one commit: its name, the commit, and its files by name."""

    repository: str
    commit: str
    files: dict[str, HubFile]


def pull(name: str, revision: str | None = None, check_config: Callable[[Path], Any] = lambda path: None) -> Path:
    """Download weights into the zoo's cache, where `zoo:NAME` finds them. An interrupted download is continued.

    Args:
        name: a name of `zoo.weights.table.PUBLIC`, or a repository, "owner/name"; "zoo:" before it is left out.
        revision: branch, tag or commit of the repository. Default: its main branch.
        check_config: called with the config.json of a Hugging Face folder before its weights are downloaded; raises
            UserError where the model is not supported.

    Returns:
        The folder with the files.

    Raises:
        UserError: the repository does not exist or holds no weights that the zoo reads; the hub cannot be reached; the
            disk is too small; or a file differs from its digest.
    """
    name = name.removeprefix("zoo:")
    if name in WEIGHTS:
        raise UserError(f"zoo:{name} comes with the zoo: there is nothing to download")
    if name not in PUBLIC and not is_repository(name):
        raise UserError(
            f"{name or 'an empty name'} is neither one of {', '.join(PUBLIC)} nor a repository on the hub, OWNER/NAME"
        )
    folder = weights_cache() / name
    parent = weights_cache() / ".partial"
    parent.mkdir(parents=True, exist_ok=True)
    partial = parent / name.replace("/", "@")  # no repository has this sign in its name
    with owned_lock(partial.with_name(f"{partial.name}.lock"), f"{name} is being downloaded by another command"):
        partial.mkdir(exist_ok=True)
        snapshot, wanted, entry = _plan(name, revision)
        commits = {one.repository: one.commit for one, _ in wanted}
        listed = read_list(folder)
        if listed is not None and listed.get("commits") == commits and not _damaged(folder, listed["files"]):
            print(f"zoo:{name} is in {folder} already", file=sys.stderr)
            return folder
        _check_space(parent, sum(file.size for _, file in wanted))
        # Small files first: the config shows whether the model is supported.
        _remove_stale(partial, [file for _, file in wanted])
        digests = {}
        for one, file in sorted(wanted, key=lambda pair: pair[1].name != "config.json"):
            digests[file.name] = [file.size, _download(one, file, partial)]
            if file.name == "config.json" and entry == ".":
                check_config(partial / file.name)
        (partial / WANTED).unlink()
        about = {"repository": snapshot.repository, "commits": commits, "entry": entry, "files": digests}
        (partial / LIST).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        folder.parent.mkdir(parents=True, exist_ok=True)
        replace_path(partial, folder)
    return folder


def _remove_stale(partial: Path, wanted: list[HubFile]) -> None:
    """Remove files of an interrupted download that the present one does not have, or has with another content."""
    stamp, state = partial / WANTED, json.dumps(sorted(wanted))
    is_same = stamp.is_file() and stamp.read_text(encoding="utf-8") == state
    kept = {partial / file.name for file in wanted}  # `_download` compares them with their digests
    if is_same:
        kept |= {partial / f"{file.name}.part" for file in wanted}
    for path in partial.rglob("*"):
        if path not in kept and not path.is_dir():
            path.unlink()
    stamp.write_text(state, encoding="utf-8")


def _plan(name: str, revision: str | None) -> tuple[Snapshot, list[tuple[Snapshot, HubFile]], str]:
    """The repository, the files to download with the repository of each, and the file that `zoo:NAME` loads."""
    if (public := PUBLIC.get(name)) is None:
        snapshot = _read_snapshot(name, revision)
        names, entry = choose_files(snapshot)
        return snapshot, [(snapshot, snapshot.files[file]) for file in names], entry
    snapshot = _read_snapshot(public.repository, revision)
    repository, tokenizer, sha256 = LLAMA2_TOKENIZER
    other = _read_snapshot(repository, None)
    for one, file in ((snapshot, public.file), (other, tokenizer)):
        if file not in one.files:
            raise UserError(f"{one.repository} on the hub has no file {file}")
    pinned = other.files[tokenizer]._replace(sha256=sha256)
    return snapshot, [(other, pinned), (snapshot, snapshot.files[public.file])], public.file


def choose_files(snapshot: Snapshot) -> tuple[list[str], str]:
    """The names of a repository's files to download, and which of them to load, "." for all as a folder.

    Raises:
        UserError: the repository holds no weights that the zoo reads.
    """
    files = snapshot.files
    if checkpoint := next((name for name in CHECKPOINTS if name in files), None):
        return [checkpoint], checkpoint
    if {CONTENT, TENSORS} <= set(files):
        return [CONTENT, TENSORS], "."
    weights = [name for name in files if WEIGHT_FILES.fullmatch(name)]
    if "model.safetensors" in weights:
        weights = ["model.safetensors"]
    elif weights and INDEX in files:
        weights.append(INDEX)
    else:
        weights = []
    if weights and "config.json" in files:
        small = [name for name in (*CONFIG_FILES, *TOKENIZER_FILES) if name in files]
        return [*small, *sorted(weights)], "."
    bins = [name for name in files if name.endswith(".bin") and "/" not in name and not name.startswith("tok")]
    if len(bins) == 1 and "config.json" not in files:
        return [*(name for name in files if re.fullmatch(r"tok\w*\.bin|tokenizer\.model", name)), *bins], bins[0]
    has_pickles = any(name.endswith((".pt", ".pth")) or "pytorch_model" in name for name in files)
    reason = "; it has pickled weights, which are not downloaded because they could run code" if has_pickles else ""
    raise UserError(
        f"{snapshot.repository} has no weights that the zoo reads (config.json or zoo.json with model.safetensors, "
        f"one .bin of llama2.c, or best.ckpt){reason}"
    )


def _read_snapshot(repository: str, revision: str | None) -> Snapshot:
    if not online():
        raise UserError(f"the hub cannot be reached, so that {repository} cannot be downloaded: check the connection")
    try:
        info = hub_api().model_info(repository, revision=revision, files_metadata=True)
    except Exception as error:  # of several libraries, for missing names, permissions and connections
        raise UserError(describe_hub_error(error, repository, revision)) from error
    files = {}
    for sibling in info.siblings or []:
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        is_safe = not os.path.isabs(sibling.rfilename) and ".." not in sibling.rfilename.split("/")
        if is_safe and sibling.size is not None and (sha256 or sibling.blob_id):
            files[sibling.rfilename] = HubFile(sibling.rfilename, sibling.size, sha256, sibling.blob_id)
    return Snapshot(repository, info.sha or "", files)


def _check_space(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free, but the files need {n_bytes / 1e9:.1f} GB: free some, or set "
            "ZOO_CACHE to a folder on a larger disk"
        )


def _download(snapshot: Snapshot, file: HubFile, folder: Path) -> str:
    """Download a file, or its rest, and compare it with the hub's digest. Returns its SHA-256."""
    path = folder / file.name
    if path.is_file() and (sha256 := _matching_sha256(path, file)):
        return sha256
    part = path.with_name(f"{path.name}.part")
    show_progress(f"downloading {file.name}, {file.size / 1e6:.1f} MB")
    try:
        download(snapshot.repository, file.name, snapshot.commit, part, file.size)
    except Exception as error:  # as above
        raise UserError(describe_hub_error(error, snapshot.repository, snapshot.commit)) from error
    os.replace(part, path)
    if (sha256 := _matching_sha256(path, file)) is None:
        path.unlink(missing_ok=True)
        raise UserError(
            f"{file.name} of {snapshot.repository} differs from its digest on the hub, and was removed: run zoo pull "
            "again"
        )
    return sha256


def _matching_sha256(path: Path, file: HubFile) -> str | None:
    """The SHA-256 of a downloaded file; None if the file differs from the size or digest that the hub states."""
    if not path.is_file() or path.stat().st_size != file.size:
        return None
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    if file.sha256 is not None:
        return sha256 if sha256 == file.sha256 else None
    git = hashlib.sha1(b"blob %d\0" % file.size + path.read_bytes(), usedforsecurity=False).hexdigest()
    return sha256 if git == file.git_sha1 else None


def _damaged(folder: Path, files: dict[str, Iterable[Any]]) -> bool:
    """Whether a file of a finished download is missing or differs from its digest."""
    return any(
        _matching_sha256(folder / name, HubFile(name, size, sha256, None)) is None
        for name, (size, sha256) in files.items()
    )
