"""The lock on the folder of a run: a second `fit` into it is refused from the start of the first."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.callbacks import Predictions
from zoo.cli.ranks import Ranks
from zoo.cli.run_folder import EmptyFolders, missing_folders, remove_empty
from zoo.files.locks import owned_lock

LOCK_NAME = ".lock"


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Create the folder and hold its lock. At the end, folders that were created and stayed empty are removed.

    Raises:
        UserError: another process trains in this folder.
        OSError: the folder cannot be created or written.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.callback(remove_empty, list(missing_folders([folder])))
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(owned_lock(folder / LOCK_NAME, f"another run writes into {folder}"))
        except OSError as error:
            raise OSError(f"cannot write to {folder} ({error.strerror or error}): give another --output_dir") from error
        yield


@contextlib.contextmanager
def locked_and_watched(folder: Path | None, ranks: Ranks, trainer: Any) -> Iterator[None]:
    """Hold the lock of a folder, if one is given, and end this process if another rank fails, without leaving traces.

    Args:
        folder: folder of the run, on rank 0 of `fit`.
        ranks: ranks of the run.
        trainer: trainer of this process.
    """
    with contextlib.ExitStack() as lock:
        if folder is not None:
            lock.enter_context(locked_folder(folder))

        def remove_traces() -> None:
            for callback in trainer.callbacks:
                if isinstance(callback, Predictions | EmptyFolders):
                    callback.on_exception(trainer, trainer.lightning_module, KeyboardInterrupt())
            lock.close()

        with ranks.watched(remove_traces):
            yield
