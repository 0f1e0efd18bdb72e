"""Files written under a temporary name and renamed when complete: a reader sees the old file or the new one.

The temporary name is hidden, and names the machine and the process that writes. No two writers share it, and what a
killed process left is recognised and removed.
"""

import contextlib
import itertools
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

_COUNTER = itertools.count()
OLD = ".old"  # suffix of a folder while another one takes its place


def temporary_path(path: Path) -> Path:
    """A new hidden name in the folder of `path`, for a file that is renamed to `path` later."""
    return path.with_name(f"{_prefix(path)}{_host()}-{os.getpid()}-{next(_COUNTER)}.tmp")


@contextlib.contextmanager
def replacing(path: Path, durable: bool = False, replaces_folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to. It is renamed to `path` at the end, and removed after an exception.

    Args:
        path: the file to create or replace, in an existing folder.
        durable: wait until the content and the new name are on the disk, so that a power failure loses neither.
        replaces_folder: `path` is a folder, and the file replaces it with all that it holds.
    """
    remove_stale(path)
    temporary = temporary_path(path)
    try:
        yield temporary
        if durable:
            _flush(temporary, os.O_RDONLY)
        (replace_path if replaces_folder else os.replace)(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        flush_folder(path.parent)


def replace_path(new: Path, path: Path) -> None:
    """Rename a file or folder to `path`, in place of the file or folder there, and wait until this is on the disk.

    A folder cannot be replaced in one operation: for a moment only `path` with the suffix `.old` exists.
    """
    old, is_new = path.with_name(f"{path.name}{OLD}"), not os.path.lexists(path)
    if is_new or not (new.is_dir() or path.is_dir()):
        os.replace(new, path)
        if is_new and old.is_dir():  # of a run that was killed in between
            remove(old)
    else:
        remove(old)
        os.replace(path, old)
        os.replace(new, path)
        remove(old)
    flush_folder(path.parent)


def complete_path(path: Path) -> Path:
    """Where the file or folder of that name is: under its name with `.old` after a kill inside `replace_path`."""
    old = path.with_name(f"{path.name}{OLD}")
    return old if not os.path.lexists(path) and old.is_dir() else path


def remove(path: Path) -> None:
    """Remove a file, or a folder and all that it holds, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk. Does nothing on Windows, where that is not possible."""
    if hasattr(os, "O_DIRECTORY"):
        _flush(folder, os.O_DIRECTORY)


def remove_stale(path: Path) -> None:
    """Remove temporary files for `path` whose process, on this machine, has ended."""
    pattern = re.compile(re.escape(_prefix(path) + _host()) + r"-(\d+)-\d+\.tmp")
    with contextlib.suppress(OSError):  # a folder that is missing or not readable holds nothing to remove
        for name in os.listdir(path.parent):
            if (match := pattern.fullmatch(name)) and not is_alive(int(match[1])):
                remove(path.with_name(name))


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OverflowError, PermissionError):  # no such number; a process of another user
        return True
    return True


def _prefix(path: Path) -> str:
    return f".{path.name[:40]}."  # a file name has at most 255 bytes


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())[:40]


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
