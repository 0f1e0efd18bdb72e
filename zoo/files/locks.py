"""Locks on files and folders that are written for a long time; a refusal names the process that holds the lock."""

import contextlib
import errno
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from zoo.errors import UserError
from zoo.files.atomic import is_alive

NOT_SUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
SECONDS_AFTER_A_KILL = 15.0


@contextlib.contextmanager
def owned_lock(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock until the end of the block. The operating system releases it when the process ends, however it ends.

    The file, which contains the owner's process and machine, is removed at the end; one that a killed process left
    does not matter. Loader processes of a killed run hold its lock until they notice, which takes seconds: wait for
    them.

    Args:
        path: path of the lock's file, in an existing folder.
        refusal: start of the error's sentence, which continues with the owner.

    Raises:
        UserError: another process holds the lock.
        OSError: the folder cannot be written.
    """
    lock = FileLock(path)
    is_locked = True
    try:
        _acquire(lock, path, refusal)
    except OSError as error:
        if error.errno not in NOT_SUPPORTED:
            raise
        warnings.warn(f"{path.parent} supports no locks: start no second run in it", stacklevel=2)
        is_locked = False
    if not is_locked:
        yield
        return
    own = path.stat()  # the lock keeps the file open, so that no other file gets its number
    try:
        path.write_text(f"{os.getpid()} {socket.gethostname()}\n", encoding="utf-8")
        yield
    finally:
        # Removed while it is locked: a process that waits for it sees that the name is gone, and starts over. If the
        # folder was replaced meanwhile, the file is the lock of another process.
        with contextlib.suppress(OSError):
            if os.path.samestat(own, path.stat()):
                path.unlink()
        lock.release()


def _acquire(lock: BaseFileLock, path: Path, refusal: str) -> None:
    try:
        lock.acquire(timeout=0)
        return
    except Timeout:
        pid, host = _read_owner(path)
    if not path.exists():  # released at this moment; or no file can be created here
        try:
            lock.acquire(timeout=1)
            return
        except Timeout:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    if host == socket.gethostname() and not is_alive(pid):
        with contextlib.suppress(Timeout):  # processes that it started go on
            lock.acquire(timeout=SECONDS_AFTER_A_KILL)
            return
    raise UserError(refusal + _owner_in_words(pid, host))


def _read_owner(path: Path) -> tuple[int, str]:
    """Process and machine in a lock's file; (0, "") where they are not there."""
    with contextlib.suppress(OSError, ValueError):
        pid, host = path.read_text(encoding="utf-8").split()
        return int(pid), host
    return 0, ""


def _owner_in_words(pid: int, host: str) -> str:
    if not host:
        return " (another process)"
    return f" (process {pid}{'' if host == socket.gethostname() else f' on {host}'})"
