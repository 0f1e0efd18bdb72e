"""The file of a new storage, which a search that ends before its first trial removes again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna

from zoo.cli.run_folder import missing_folders, remove_empty
from zoo.errors import UserError
from zoo.search.storage import open_storage, storage_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def removed_without_trials(url: str | None, folder: Path) -> Iterator[None]:
    """Create the folder of a study; after an error in the block, remove what this call has created and nothing uses.

    Processes that start together share a new storage. Each holds a shared lock on the folder of the file, and only the
    last one, which gets the lock alone, removes a file. Where the file system has no such locks, the file remains.

    Args:
        url: URL of the storage, as in `open_storage`.
        folder: folder of the study.
    """
    file = storage_file(url, folder)
    parents = [folder] if file is None else [folder, file.parent]
    missing = sorted(set(missing_folders(parents)), key=lambda path: len(path.parts), reverse=True)
    lock = None if file is None else _lock_shared(file.parent)
    try:
        is_new = file is not None and not file.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            yield
        except BaseException:
            # Other processes begin to use the folders when they have the lock, too.
            is_alone = lock is not None and _lock_alone(lock)
            if file is not None and is_new and is_alone and file.exists() and not _has_trials(url, folder):
                file.unlink()
            if is_alone or file is None:
                remove_empty(missing)
            raise
    finally:
        if lock is not None:
            os.close(lock)


def _has_trials(url: str | None, folder: Path) -> bool:
    """Whether the storage has trials that were not refused, or cannot be read."""
    if any(folder.glob("trial-*")):
        return True
    try:
        storage = open_storage(url, folder)
        studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    except UserError:
        return True
    return any(trial.state != optuna.trial.TrialState.FAIL for study in studies for trial in study.trials)


def _lock_shared(folder: Path) -> int | None:
    """A descriptor of the folder, which is created, with a shared lock; None where there are no locks."""
    if fcntl is None:
        return None
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process has just removed it
            lock = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)
            except OSError:
                os.close(lock)
                return None
            if _is_folder(lock, folder):
                return lock
            os.close(lock)


def _is_folder(lock: int, folder: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock), folder.stat())
    return False


def _lock_alone(lock: int) -> bool:
    """Make the lock exclusive; False where another process has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
