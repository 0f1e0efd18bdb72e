"""Texts without targets for pretraining: lines of text files, and rows of tables rendered as the training rows are."""

import os
from collections.abc import Callable
from pathlib import Path

from zoo.datamodules.row_text import RowLayout
from zoo.datamodules.sources import tables
from zoo.datamodules.sources.corpus import TEXT_SUFFIXES, hub_tables
from zoo.datamodules.sources.table_rows import BadRows, Table
from zoo.datamodules.sources.tables import hub_table
from zoo.errors import UserError
from zoo.files import regular_file
from zoo.text_formats.text_file import read_text

SUFFIXES = TEXT_SUFFIXES | tables.SUFFIXES


def unlabelled_files(data: str) -> list[Path] | None:
    """The files that `data` names, in the order of their names; None for a data set on the hub.

    Args:
        data: a file; a folder, of which all files with a known suffix are used; or the name of a hub data set.

    Raises:
        UserError: a folder is without such files, a file has another suffix, or there is no text.
    """
    if not data.strip():
        raise UserError("--data.unlabelled is empty: give a file, a folder or the name of a data set")
    path = Path(os.path.expanduser(data))
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.is_dir())
    elif path.exists():
        files = [regular_file(path, "--data.unlabelled")]
    else:
        return None
    if not files or not all(file.suffix.lower() in SUFFIXES for file in files):
        raise UserError(f"--data.unlabelled {data} holds no text: give files of {', '.join(sorted(SUFFIXES))}")
    if all(file.suffix.lower() in TEXT_SUFFIXES and not read_text(file).strip() for file in files):
        raise UserError(f"--data.unlabelled {data} has no text, only blank lines: give texts, or drop the option")
    return files


def read_unlabelled(
    data: str,
    layout: Callable[[], RowLayout],
    read_file: Callable[[Path, BadRows], Table],
    bad: BadRows,
    cache_dir: Path,
) -> list[str]:
    """The texts in a file, a folder or a hub data set; of all splits, where it has splits.

    Args:
        data: as for `unlabelled_files`.
        layout: returns the columns of tables that are the text; their targets are not read.
        read_file: returns the table in a file.
        bad: what to do with a row without text.
        cache_dir: folder for hub data sets.

    Raises:
        FileNotFoundError: neither a file nor a data set on the hub has this name.
        UserError: a file cannot be read, there is no text, or a table lacks the columns of the training rows.
    """
    files = unlabelled_files(data)
    if files is None:
        hub = hub_tables(data, SUFFIXES, "a table", cache_dir)
        return _rows([hub_table(f"{data} ({split})", table) for split, table in hub.items()], layout(), bad)
    texts: list[str] = []
    for file in files:
        if file.suffix.lower() in TEXT_SUFFIXES:
            lines = (line.strip() for line in read_text(file).split("\n"))
            texts += [line for line in lines if line]
        else:
            texts += _rows([read_file(file, bad)], layout(), bad)
    return texts


def _rows(given: list[Table], layout: RowLayout, bad: BadRows) -> list[str]:
    return layout._replace(targets=[], group=None).read(given, bad, need_targets=False).texts
