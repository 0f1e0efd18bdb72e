"""Input files: only regular files are read, because a pipe never ends and a device fills the memory."""

import os
import stat
from pathlib import Path

from zoo.errors import UserError

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


def regular_file(path: str | os.PathLike, option: str = "", max_bytes: int | None = None) -> Path:
    """The path of an input file, after a check that it is a regular file and not empty. The file is not opened.

    Args:
        path: the file; symbolic links are followed.
        option: what the message calls the file, such as an option's name; "" uses the path alone.
        max_bytes: the largest size that is accepted; None accepts any.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it is a folder, a pipe, a device or a socket, it is empty or too large, or `path` is not a path.
    """
    prefix = f"{option} " if option else ""
    if not isinstance(path, str | bytes | os.PathLike):  # os.stat also takes the number of an open file
        raise UserError(f"{prefix}{path!r:.100} is not a path: give the path of a file")
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{prefix}{path}: there is no such file; check the path") from None
    except NotADirectoryError:
        raise FileNotFoundError(f"{prefix}{path}: a part of this path is a file, not a folder; check it") from None
    except PermissionError:
        raise  # names the path already
    except (OSError, ValueError) as error:  # a loop of symbolic links, a name that is too long, a zero byte in it
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{prefix}{os.fsdecode(path)!r} cannot be read ({reason}): give another file") from None
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")
        raise UserError(f"{prefix}{path} is {kind}: give a regular file")
    if status.st_size == 0:
        raise UserError(f"{prefix}{path} is empty: copy or download the file again")
    if max_bytes is not None and status.st_size > max_bytes:
        raise UserError(
            f"{prefix}{path} is too large: {status.st_size} bytes, where at most {max_bytes} are read; "
            "give another file"
        )
    return Path(path)


def refuse_larger_than_memory(path: Path) -> None:
    """Raises UserError if a file that is read as a whole is larger than this computer's memory."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not known on this system
        return
    if (size := path.stat().st_size) > memory:
        raise UserError(f"{path} is too large: {size} bytes, but this computer has {memory} bytes of memory")
