"""Files at a URL (https://, s3://, gs://, ...): copied into the cache, and read from there as any other file."""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import fsspec

from zoo.errors import UserError
from zoo.files.atomic import replacing

# What a file system says about the version of a file. A copy is used as long as these stay the same; without any of
# them the file is copied each time, because a new checkpoint often has the size of the old one.
VERSION_FIELDS = (
    "ETag", "etag", "mtime", "LastModified", "Last-Modified", "last_modified", "created", "Content-MD5", "md5Hash",
)  # fmt: skip
NEIGHBOURS = (  # names under which a tokenizer and its settings are next to weights, or to each other
    "tokenizer.model", "tokenizer.bin", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "encoder.json", "vocab.bpe",
)  # fmt: skip


def is_url(path: str | None) -> bool:
    """Whether it is a URL rather than a path."""
    return path is not None and "://" in path


def refuse_url(name: str, path: str | os.PathLike | None) -> None:
    """Raises UserError where a path to write to, of the option `name`, is a URL."""
    if path is not None and is_url(os.fspath(path)):
        raise UserError(f"{name} {os.fspath(path)} is a URL, and files are written locally only: give a path")


def local_copy(url: str, option: str = "--ckpt_path") -> Path:
    """The path of a copy of a remote file in $ZOO_CACHE, else ~/.cache/zoo. It is copied again when the file changes.

    Nothing in the file is executed: it is read later, with the checks of a local file.

    Args:
        url: with a protocol that fsspec knows; some need a further package, as s3:// needs s3fs.
        option: that names the file, for messages.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the protocol is unknown or its package is missing, or it is a folder.
        OSError: the file cannot be read or the copy not be written.
    """
    parent, _, name = url.partition("?")[0].rpartition("/")
    if name in ("", ".", ".."):
        raise UserError(f"{option} {url} names no file")
    try:
        files, path = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:  # the package is missing, or the protocol unknown
        raise UserError(f"{option} {url}: {error}") from error
    info = _info(files, path, url, option)
    if info.get("type") == "directory":
        raise UserError(f"{option} {url} is a folder: copy it here, and give the copy")
    version = [str(info[name]) for name in VERSION_FIELDS if info.get(name) is not None]
    # Two files of one remote folder, such as a checkpoint and the config next to it, have copies in one folder.
    folder = _copies() / _digest(parent)
    copy, stamp = folder / name, folder / f".{name}.version"
    is_current = copy.is_file() and stamp.is_file() and stamp.read_text() == _digest(url, *version)
    if not is_current or not version:
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        with replacing(copy) as partial:
            _read(files, path, partial, f"{option} {url}")
        stamp.write_text(_digest(url, *version))
    return copy


def copy_with_neighbours(url: str, option: str) -> Path:
    """As `local_copy`; small files next to it that belong to a tokenizer or to Llama weights are copied, too."""
    copy = local_copy(url, option)
    folder = url.partition("?")[0].rpartition("/")[0]
    for name in () if copy.suffix == ".ckpt" else NEIGHBOURS:
        if name != copy.name:
            with contextlib.suppress(OSError):  # there is none
                local_copy(f"{folder}/{name}", option)
    return copy


def is_copy(path: str | Path) -> bool:
    """Whether a file is a copy that `local_copy` has made."""
    return Path(path).is_relative_to(_copies())


def _copies() -> Path:
    return Path(os.environ.get("ZOO_CACHE", "~/.cache/zoo")).expanduser() / "remote"


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]


def _info(files: Any, path: str, url: str, option: str) -> dict[str, Any]:
    try:
        return files.info(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{option} {url}: there is no such file, or no connection") from error
    except Exception as error:  # each protocol raises its own exceptions
        raise OSError(f"{option} {url} cannot be read ({type(error).__name__}: {error})") from error


def _read(files: Any, path: str, target: Path, name: str) -> None:
    try:
        files.get_file(path, str(target))
    except Exception as error:  # each protocol raises its own exceptions
        raise OSError(f"{name} cannot be copied ({type(error).__name__}: {error})") from error
