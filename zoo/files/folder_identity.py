"""Identity of a folder: whether a path still leads to the folder that it led to before."""

import os
from pathlib import Path


class FolderIdentity:
    """A folder as it is at the time of construction, also after it was removed or renamed.

    The folder stays open, so that the file system does not give its number to a new one. Windows cannot open folders,
    and does not remove one with open files: there only the existence of the path is checked.

    Args:
        path: path of an existing folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY) if hasattr(os, "O_DIRECTORY") else None

    def state(self) -> str:
        """The state of the path now: the "same" folder, "replaced" by another folder or file, or "removed"."""
        try:
            now = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return "removed"
        if self._descriptor is None or os.path.samestat(now, os.fstat(self._descriptor)):
            return "same"
        return "replaced"

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
