"""Weights that `zoo pull` has downloaded: a folder each in $ZOO_CACHE/weights, with a list of its files and digests."""

import hashlib
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.errors import UserError
from zoo.files.cache_folder import cache_folder

LIST = "zoo_pull.json"  # repository, revision, the file to load, and {name: [size, SHA-256]} of every file
_verified: set[tuple[str, int, int]] = set()  # (path, size, time of the last change)


def weights_cache() -> Path:
    """Folder of downloaded weights: in $ZOO_CACHE, else in ~/.cache/zoo."""
    return cache_folder() / "weights"


def is_repository(name: str) -> bool:
    """Whether a name has the form of a repository on the hub, "owner/name"."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None and ".." not in name


def downloaded(name: str) -> Path | None:
    """The file or folder to load of downloaded weights; None if they are not there.

    Sizes are compared always, digests once per process, unless the environment variable ZOO_VERIFY is 0.

    Raises:
        UserError: a file is missing or damaged.
    """
    if not is_repository(name if "/" in name else f"owner/{name}"):
        return None  # such as "../x", which is outside the cache
    folder = weights_cache() / name
    listed = read_list(folder)
    if listed is None:
        return None
    for file, (size, sha256) in listed["files"].items():
        if (fault := find_fault(folder / file, size, sha256)) is not None:
            raise UserError(f"{folder / file} {fault}: run `zoo pull {name}` again")
    return folder / listed["entry"]


def downloads() -> dict[str, int]:
    """The names of all downloaded weights, each with the bytes of its files."""
    lists = sorted(weights_cache().glob(f"*/{LIST}")) + sorted(weights_cache().glob(f"*/*/{LIST}"))
    names = {}
    for path in lists:
        name = path.parent.relative_to(weights_cache()).as_posix()
        listed = None if name.startswith(".") else read_list(path.parent)
        if listed is not None:
            names[name] = sum(size for size, _ in listed["files"].values())
    return names


def read_list(folder: Path) -> dict[str, Any] | None:
    """The list of a folder's files; None if there is none, or it is damaged."""
    try:
        listed = json.loads((folder / LIST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(listed, dict) or not isinstance(files := listed.get("files"), dict):
        return None
    is_valid = all(
        _is_inside(name) and isinstance(about, list) and [*map(type, about)] == [int, str]
        for name, about in files.items()
    )
    entry = listed.get("entry")
    return listed if is_valid and isinstance(entry, str) and (entry == "." or entry in files) else None


def _is_inside(name: str) -> bool:
    """Whether the name of a file means one inside the folder that it is relative to."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def find_fault(file: Path, size: int, sha256: str) -> str | None:
    """What is wrong with a file, as the end of a sentence; None if its size and its digest are as expected."""
    if not file.is_file():
        return "is missing"
    status = file.stat()
    if status.st_size != size:
        return f"has {status.st_size:,} bytes, not {size:,}"
    key = (str(file.resolve()), status.st_size, status.st_mtime_ns)
    if os.environ.get("ZOO_VERIFY") == "0" or key in _verified:
        return None
    with file.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
            return "differs from its digest"
    _verified.add(key)
    return None
