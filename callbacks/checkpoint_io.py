"""AtomicCheckpointIO: writes a checkpoint so that a crash leaves the old one or the new one, and names the reason."""

from pathlib import Path
from typing import Any

import torch

from zoo.files.atomic import replacing
from zoo.files.checkpoint_folders import has_shards, is_checkpoint_folder, write_folder
from zoo.files.checkpoints import DigestCheckpointIO
from zoo.files.digest import add_digest


class AtomicCheckpointIO(DigestCheckpointIO):
    """Write a temporary file next to the target, fsync, rename: the target is the old checkpoint or the new one.

    Args:
        deferred: store a failure in `failure` rather than raise it: the rank that writes must first reach the barrier
            at which the others wait.
    """

    def __init__(self, deferred: bool = False) -> None:
        self.deferred = deferred
        self.failure: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        # A crash while writing leaves the old checkpoint: the new one replaces it only when it is on the disk.
        path = Path(path)
        try:
            if has_shards(checkpoint):
                write_folder(checkpoint, path)
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            is_folder = is_checkpoint_folder(path)  # of an earlier part of the run, which was sharded
            with replacing(path, durable=True, replaces_folder=is_folder) as partial, open(partial, "wb") as file:
                torch.save(add_digest(checkpoint), file)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            # Say whether an earlier checkpoint exists.
            remains = "the one before it is untouched" if path.exists() else "nothing was written"
            self.failure = OSError(
                f"cannot save the checkpoint {path} ({reason(error)}); {remains}: free disk space or give another "
                "--output_dir"
            )
            if not self.deferred:
                raise self.failure from error


def reason(error: BaseException) -> str:
    """The operating system's description of a failed write, from inside torch's exceptions."""
    # Follow the chain of causes to the first OSError with a description.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]
