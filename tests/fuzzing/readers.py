"""The readers of checkpoints and weights, and what counts as a correct answer to a damaged file."""

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zoo.errors import UserError


def outcome(read: Callable[[Path], Any], path: Path) -> str:
    """What a reader makes of a file: "accepted", "refused" in one sentence that names the file, or the fault."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
    except (UserError, FileNotFoundError) as error:
        message = str(error)
        if "\n" in message.strip():
            return f"several lines: {message!r}"
        folder = path if path.is_dir() else path.parent
        return "refused" if str(path) in message or str(folder) in message else f"file not named: {message!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "accepted"


@contextlib.contextmanager
def address_space(n_bytes: int):
    """Limit the memory of this process in the block: an allocation beyond it fails rather than fill the computer."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
