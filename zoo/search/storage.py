"""Storages of Optuna studies: an SQLite file, a journal file, or a database."""

import json
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from zoo.cli.run_folder import missing_folders, remove_empty
from zoo.errors import UserError

JOURNAL = "journal:"  # a storage that is one file, also on the shared file system of a cluster
SECONDS_BETWEEN_SIGNS = 30  # of life of a process that works on a trial in a database
# Seconds between attempts to open a new database, in which another process makes the same tables at the same time.
WAITS = (0.25, 0.5, 1.0, 2.0, 4.0, 0.0)
ALREADY_MADE = re.compile("already exists|duplicate key|unique constraint|duplicate entry", re.IGNORECASE)
LONGEST_LINE = 2**16  # bytes that are read of a journal to see that it is one


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The storage of a study.

    Args:
        url: `journal:FILE`, or the URL of a database as Optuna and SQLAlchemy read it, such as sqlite:///FILE,
            postgresql://USER@HOST/DATABASE or mysql://...; None is an SQLite file in the folder.
        folder: folder of the study.

    Raises:
        UserError: the URL is not one, the file is of another kind, the database cannot be reached, or the package of
            its kind is missing.
    """
    if url is not None and url.startswith(JOURNAL):
        return _open_journal(url)
    for seconds in WAITS:
        try:
            return _open_database(url, folder)
        except Exception as error:  # of SQLAlchemy, of the database's package, or of Optuna
            if not (seconds and ALREADY_MADE.search(str(error))):
                raise UserError(_cannot_be_used(url, folder, error)) from error
        time.sleep(seconds)
    raise AssertionError("the last attempt returns or raises")


def _open_database(url: str | None, folder: Path) -> BaseStorage:
    if url is None:
        return RDBStorage(f"sqlite:///{folder / 'study.db'}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # Signs of life: another process fails the trials of one that was killed.
        return RDBStorage(url, heartbeat_interval=SECONDS_BETWEEN_SIGNS, grace_period=4 * SECONDS_BETWEEN_SIGNS)


def storage_file(url: str | None, folder: Path) -> Path | None:
    """The file of a storage, in a folder that exists or will be created; None where there is none.

    Args:
        url: URL of the storage, as in `open_storage`.
        folder: folder of the study.
    """
    if url is None:
        return folder / "study.db"
    if url.startswith(JOURNAL):
        path = _journal_path(url)
        return path if path.name and not path.is_dir() else None
    # SQLAlchemy's form: sqlite:///relative, sqlite:////absolute, sqlite+driver:///FILE?OPTIONS.
    scheme, _, rest = url.partition(":///")
    name = rest.partition("?")[0]
    if scheme.partition("+")[0] != "sqlite" or name in ("", ":memory:"):
        return None
    path = Path(name)
    return path if path.parent.is_dir() or path.parent == folder else None


def _journal_path(url: str) -> Path:
    return Path(url.removeprefix(JOURNAL).removeprefix("//"))


def _open_journal(url: str) -> BaseStorage:
    path = _journal_path(url)
    if path.is_dir() or not path.name:
        raise UserError(f"--storage {url} names no file: write journal:FILE")
    if path.exists():
        _check_is_journal(path, url)  # Optuna would append to a file of any kind
    missing = list(missing_folders([path.parent]))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except Exception as error:  # of Optuna, which expects a file that is not damaged
        remove_empty(missing)
        raise UserError(_cannot_be_used(url, path.parent, error)) from error


def _check_is_journal(path: Path, url: str) -> None:
    """Raises UserError if a file has content that does not begin as a journal does."""
    if not path.is_file():
        raise UserError(f"--storage {url} is not a regular file: give another file")
    with open(path, "rb") as file:
        line = file.readline(LONGEST_LINE)
    try:
        is_journal = not line or "op_code" in dict(json.loads(line))
    except (ValueError, TypeError, RecursionError):
        is_journal = False
    if not is_journal:
        raise UserError(f"--storage {url} is not a journal of Optuna: give another file")


@contextmanager
def storage_failures(url: str | None, folder: Path) -> Iterator[None]:
    """Raise UserError where Optuna cannot read or write its storage inside the block.

    Args:
        url: URL of the storage, as in `open_storage`.
        folder: folder of the study.
    """
    try:
        yield
    except StorageInternalError as error:
        raise UserError(_cannot_be_used(url, folder, error.__cause__ or error)) from error


def _cannot_be_used(url: str | None, folder: Path, error: BaseException) -> str:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if url is None:
        return f"{folder / 'study.db'} cannot be used ({reason}): give another --output_dir, or --storage"
    return f"--storage {_without_password(url)} cannot be used ({reason}): see --help"


def _without_password(url: str) -> str:
    return re.sub(r"(?<=//)([^/@:]*):[^/@]*@", r"\1:***@", url)
