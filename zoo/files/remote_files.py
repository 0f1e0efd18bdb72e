"""Files at a URL (https://, s3://, gs://, ...): copied into the cache, or read in place, a part at a time."""

import contextlib
import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from zoo.errors import UserError
from zoo.files.atomic import replacing
from zoo.files.cache_folder import cache_folder
from zoo.files.llama2c_files import declared_vocab_size

# What a file system says about the version of a file. A copy is used as long as these stay the same; without any of
# them the file is copied each time, because a new checkpoint often has the size of the old one.
VERSION_FIELDS = (
    "ETag", "etag", "mtime", "LastModified", "Last-Modified", "last_modified", "created", "Content-MD5", "md5Hash",
)  # fmt: skip
NEIGHBOURS = (  # names under which a tokenizer and its settings are next to weights, or to each other
    "tokenizer.model", "tokenizer.bin", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "encoder.json", "vocab.bpe",
)  # fmt: skip
READ_AT_ONCE = 4 << 20  # bytes of a remote file that one request reads, by default


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
        option: option that names the file, for messages.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the protocol is unknown or its package is missing, or it is a folder.
        OSError: the file cannot be read or the copy not be written.
    """
    parent, _, name = url.partition("?")[0].rpartition("/")
    if name in ("", ".", ".."):
        raise UserError(f"{option} {url} names no file")
    files, path = _open(url, option)
    info = _info(files, path, url, option)
    if info.get("type") == "directory":
        raise UserError(f"{option} {url} is a folder: copy it here, and give the copy")
    version = _version(info)
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
    if copy.suffix == ".ckpt":
        return copy
    # llama2.c's tokenizer for a smaller vocabulary is named after its size: tok512.bin.
    size = declared_vocab_size(copy)
    for name in (*NEIGHBOURS, *([f"tok{size}.bin"] if size else [])):
        if name != copy.name:
            with contextlib.suppress(OSError):  # there is none
                local_copy(f"{folder}/{name}", option)
    return copy


@dataclass(frozen=True)
class RemoteFile:
    """A file at a URL that is read in place, by processes to which it is sent.

    Args:
        url: URL of the file.
        size: bytes.
        version: differs where the content does; "" where the server does not tell.
    """

    url: str
    size: int
    version: str

    @property
    def name(self) -> str:
        return self.url.partition("?")[0].rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def __str__(self) -> str:
        return self.url

    def open(self, mode: str = "rb", buffering: int = READ_AT_ONCE) -> BinaryIO:
        """A stream of the bytes, from any of them on; it raises UserError where they cannot be read.

        Args:
            mode: "rb", as for `Path.open`.
            buffering: bytes that one request reads.
        """
        assert mode == "rb"
        return _BufferedReader(_Reader(self), buffering)


class _BufferedReader(io.BufferedReader):
    """Fills its buffer by each request, also for `io.TextIOWrapper`, which would request 8 KiB at a time."""

    def read1(self, size: int = -1, /) -> bytes:
        self.peek(1)
        return super().read1(size)


class _Reader(io.RawIOBase):
    """The bytes of a remote file; each call of `readinto` is one request."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at = file, 0
        files, path = _open(file.url, "")
        try:
            self._remote = files.open(path, "rb", block_size=READ_AT_ONCE, cache_type="none")
        except Exception as error:  # each protocol has its own exceptions
            raise UserError(f"{file} cannot be read ({type(error).__name__}: {error})") from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self._file.size - self._at))
        if size:
            try:
                self._remote.seek(self._at)
                content = self._remote.read(size)
            except Exception as error:  # each protocol has its own exceptions
                raise UserError(
                    f"{self._file} cannot be read from byte {self._at} on ({type(error).__name__}: {error}): start "
                    "again, or copy it here and give the copy"
                ) from error
            if len(content) != size:
                raise UserError(f"{self._file} has changed while it was read: start again")
            buffer[:size] = content
            self._at += size
        return size

    def close(self) -> None:
        if not self.closed:
            self._remote.close()
        super().close()


def list_remote(url: str, option: str) -> list[RemoteFile]:
    """The file at a URL, or the files in the folder there, by name.

    Args:
        url: as for `local_copy`. The URL of a folder on a web server ends with a slash.
        option: option that names it, for messages.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the protocol is unknown or its package is missing, or the server does not tell the size of a file.
        OSError: the file or folder cannot be read.
    """
    files, path = _open(url, option)
    is_page = url.startswith("http") and url.endswith("/")
    infos: list[dict[str, Any]] = [{"type": "directory"} if is_page else _info(files, path, url, option)]
    if infos[0].get("type") == "directory":
        try:
            infos = files.ls(path, detail=True)
        except Exception as error:  # each protocol has its own exceptions
            raise OSError(f"{option} {url} cannot be read ({type(error).__name__}: {error})") from error
        infos = [info for info in infos if info.get("type") == "file" and not info["name"].endswith("/")]
        urls = [files.unstrip_protocol(info["name"]) for info in infos]
        # The page of a web server lists names only.
        infos = [_info(files, info["name"], info["name"], option) if is_page else info for info in infos]
    else:
        urls = [url]
    for name, info in zip(urls, infos, strict=True):
        if not isinstance(info.get("size"), int):
            raise UserError(f"{option} {name}: the server does not tell its size: copy it here, and give the copy")
    remote = [RemoteFile(name, i["size"], " ".join(_version(i))) for name, i in zip(urls, infos, strict=True)]
    return sorted(remote, key=lambda file: file.name)


def is_copy(path: str | Path) -> bool:
    """Whether a file is a copy that `local_copy` has made."""
    return Path(path).is_relative_to(_copies())


def _copies() -> Path:
    return cache_folder() / "remote"


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:32]


def _open(url: str, option: str) -> tuple[Any, str]:
    """The file system of a URL, and its path there."""
    try:
        return fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:  # the package is missing, or the protocol unknown
        raise UserError(f"{option} {url}: {error}") from error


def _version(info: dict[str, Any]) -> list[str]:
    """What a file system says about the version of a file; empty where it says nothing."""
    return [str(info[name]) for name in VERSION_FIELDS if info.get(name) is not None]


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
