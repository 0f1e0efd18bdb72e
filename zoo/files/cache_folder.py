"""The folder of files that can be computed or downloaded again: $ZOO_CACHE, else ~/.cache/zoo."""

import os
from pathlib import Path

from zoo.errors import UserError


def check_is_local(name: str, folder: str) -> None:
    """Raises UserError if a cache folder, named by the option or variable `name`, is a URL."""
    if "://" in folder:
        raise UserError(f"{name} {folder} is a URL: set it to a folder of this machine, or mount the store")


def cache_folder() -> Path:
    """The folder, which may not exist yet.

    Raises:
        UserError: $ZOO_CACHE is a URL, or the user's home is unknown.
    """
    name = os.environ.get("ZOO_CACHE") or "~/.cache/zoo"
    check_is_local("$ZOO_CACHE", name)
    try:
        return Path(name).expanduser()
    except RuntimeError:  # a user without an entry in the list of users, or one that does not exist
        raise UserError(f"the home folder in {name} is unknown: set $ZOO_CACHE to a folder") from None
