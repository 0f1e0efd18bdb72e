"""Reading checkpoint files without executing code from them."""

from pathlib import Path
from typing import Any

import torch

from zoo.errors import UserError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The dictionary in a torch file; tensors stay memory-mapped on disk.

    Raises:
        FileNotFoundError: there is no file `path`.
        UserError: the file is damaged, holds more than tensors and plain values, or holds no dictionary.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}: check the path")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises several types for a damaged file
        raise UserError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds Python objects besides tensors and plain "
            "values; give another file"
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint: give one that `zoo fit` wrote")
    return checkpoint
