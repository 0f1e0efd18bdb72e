"""Texts at a URL: small texts and tables are copied into the cache, large texts are read in place."""

from collections.abc import Set
from pathlib import Path, PosixPath

from zoo.errors import UserError
from zoo.files.remote_files import RemoteFile, list_remote, local_copy

NAMED = "the data"  # in messages: --data_dir, an option of the data module or an argument gives it


class CopiedFile(PosixPath):
    """The path of a copy of a file at a URL; an f-string, as in a message, has the URL instead."""

    url = ""

    def __format__(self, spec: str) -> str:
        return format(self.url or str(self), spec)

    def __reduce__(self) -> tuple:
        return _copied_file, (str(self), self.url)


def _copied_file(path: str, url: str) -> CopiedFile:
    copy = CopiedFile(path)
    copy.url = url
    return copy


def copied_file(url: str) -> CopiedFile:
    """A copy of the file at a URL; raises as `zoo.files.remote_files.local_copy` does."""
    return _copied_file(str(local_copy(url, NAMED)), url)


def remote_texts(url: str, suffixes: Set[str], tables: Set[str], copied_bytes: int) -> list[Path | RemoteFile]:
    """The files at a URL: copies of those to be copied, by their order there.

    Args:
        url: URL of a file or a folder.
        suffixes: suffixes of the files to use in a folder, in lower case.
        tables: suffixes of tables, which are copied.
        copied_bytes: size of all files together up to which they are copied.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: there are no such files, or the server gives no version of a file that would be read in place.
        OSError: a file cannot be read or the copy not be written.
    """
    files = list_remote(url, NAMED)
    if len(files) != 1 or files[0].url != url:
        files = [file for file in files if file.suffix.lower() in suffixes]
    if not files:
        raise UserError(f"{NAMED} {url} holds no text: no file has one of the suffixes {', '.join(sorted(suffixes))}")
    is_small = sum(file.size for file in files) <= copied_bytes
    used: list[Path | RemoteFile] = []
    for file in files:
        if is_small or file.suffix.lower() in tables:
            used.append(copied_file(file.url))
        elif not file.version:
            raise UserError(f"{NAMED} {file}: the server does not tell its version: copy it here, and give the copy")
        else:
            used.append(file)
    return used
