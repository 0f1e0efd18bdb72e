"""Tables row by row: CSV, TSV, JSON lines, YAML, Parquet and the hub, with the place that each row came from.

CSV, JSON and YAML are read here, not by `datasets`: its parsers guess one type for a whole column and give up on the
whole file, while here one bad row can be named by its line, or left out. Cells of CSV and YAML stay the strings that
stand in the file: no number is rewritten, and YAML's `no` is a word.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from zoo.datamodules.sources.corpus import first_line
from zoo.errors import UserError

Cells = dict[str, Any]

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_JSON = {".json", ".jsonl", ".ndjson"}
YAML = {".yaml", ".yml"}
SUFFIXES = _SEPARATORS.keys() | _JSON | YAML | {".parquet"}


class BadRows:
    """What is done with a row that cannot be used: "stop" raises ValueError; "skip" leaves it out and counts it."""

    def __init__(self, action: str) -> None:
        self._stop = action == "stop"
        self.reasons: dict[str, str] = {}  # of the rows left out, by their place

    def refuse(self, place: str, reason: str) -> None:
        if self._stop:
            raise UserError(f"{place}: {reason}; mend it, or set bad_rows to skip, which leaves such rows out")
        self.leave_out(place, reason)

    def leave_out(self, place: str, reason: str) -> None:
        self.reasons[place] = reason

    def first(self) -> str:
        """The end of a sentence about the rows left out."""
        return next((f"; the first, {place}: {reason}" for place, reason in self.reasons.items()), "")


class Table(NamedTuple):
    """Rows, each with the place it came from. `columns` are those that all rows have; None: each row has its own."""

    name: str
    columns: list[str] | None
    rows: list[tuple[str, Cells]]


def read_table(file: Path, column_names: list[str] | None, bad: BadRows) -> Table:
    """The table in `file`, by the end of its name; `column_names` says that a CSV or TSV has no header.

    A `.txt` is a TSV in which quotes are characters like any other.

    Raises:
        ValueError: the file is empty, is none of these, or has a bad row.
    """
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{file} is no table that can be read: give one of {', '.join(sorted(SUFFIXES))}")
    if suffix == ".parquet":
        return _parquet(file)
    if suffix in _SEPARATORS:
        return _separated(file, _SEPARATORS[suffix], column_names, bad)
    rows = _json(file, bad) if suffix in _JSON else _yaml(file, bad)
    return Table(str(file), None, list(rows))


def hub_table(name: str, table: Any) -> Table:
    """A split of a hub data set as a table."""
    rows = ((f"{name}, row {i}", row) for i, row in enumerate(table, start=1))
    return Table(name, list(table.column_names), list(rows))


def read_labelled(file: Path, bad: BadRows) -> Table:
    """The lines `label ||| text` of a file, as a table of the columns "label" and "text".

    Raises:
        ValueError: the file is empty, or a line is bad.
    """
    rows: list[tuple[str, Cells]] = []
    for line, content in enumerate(_text(file).split("\n"), start=1):
        label, bar, text = content.partition("|||")
        if not content.strip():
            continue
        if reason := _not_utf8(content) or (not bar and "it has no ||| between a label and a text"):
            bad.refuse(f"{file}, line {line}", reason)
        else:
            rows.append((f"{file}, line {line}", {"label": label.strip(), "text": text.strip()}))
    return Table(str(file), ["label", "text"], rows)


def _text(file: Path) -> str:
    """What stands in a file, bytes that are not UTF-8 as surrogates."""
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    if not text.strip():
        raise UserError(f"{file} is empty")
    return text


def _separated(file: Path, separator: str, names: list[str] | None, bad: BadRows) -> Table:
    raw = file.suffix.lower() == ".txt"
    rows: list[tuple[str, Cells]] = []
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as content:
        reader = csv.reader(
            content, delimiter=separator, quoting=csv.QUOTE_NONE if raw else csv.QUOTE_MINIMAL, strict=True
        )
        while True:
            line = reader.line_num + 1  # where the row begins
            try:
                fields = next(reader, None)
                if fields is None:
                    break
                if reason := _not_utf8(*fields):
                    raise UserError(reason)
                if not fields:
                    continue  # a blank line
                if names is None:
                    names = _header(fields)
                elif len(fields) == len(names):
                    rows.append((f"{file}, line {line}", dict(zip(names, fields, strict=True))))
                else:
                    raise UserError(f"it has {len(fields)} fields, not the {len(names)} of the columns")
            except (csv.Error, ValueError) as error:
                if names is None:
                    raise UserError(f"{file} has no header that can be read: {error}") from error
                bad.refuse(f"{file}, line {line}", str(error).replace("'\t'", "a tab"))
    if names is None:
        raise UserError(f"{file} is empty")
    return Table(str(file), names, rows)


def _header(fields: list[str]) -> list[str]:
    names = [field.strip() for field in fields]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two columns are called {twice[0]!r}")
    return names


def _json(file: Path, bad: BadRows) -> Iterator[tuple[str, Cells]]:
    """One object a line; or one list of objects, which may go over many lines."""
    text = _text(file)
    if text.lstrip().startswith("["):
        try:
            items = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} is not valid JSON ({error})") from error
        yield from _mappings(((f"{file}, row {i}", item) for i, item in enumerate(items, start=1)), bad)
        return
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                item = json.loads(content)
            except (ValueError, RecursionError) as error:
                reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                bad.refuse(f"{file}, line {line}", _not_utf8(content) or f"it is not valid JSON ({reason})")
                continue
            yield from _mappings([(f"{file}, line {line}", item)], bad)


def _yaml(file: Path, bad: BadRows) -> Iterator[tuple[str, Cells]]:
    """One mapping is one row; a list of mappings is as many."""
    text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    try:
        # The base loader resolves no types: a text of 12:30 is no number of seconds, nor a text of "no" a false.
        item = yaml.load(text, getattr(yaml, "CBaseLoader", yaml.BaseLoader))
    except (yaml.YAMLError, UnicodeEncodeError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or first_line(error)
        where = f" at line {mark.line + 1}" if mark else ""
        bad.refuse(str(file), _not_utf8(text) or f"it is not valid YAML{where} ({problem})")
        return
    if isinstance(item, list):
        yield from _mappings(((f"{file}, row {i}", row) for i, row in enumerate(item, start=1)), bad)
    elif not item:
        bad.refuse(str(file), "it is empty")
    else:
        yield from _mappings([(str(file), item)], bad)


def _mappings(rows: Iterable[tuple[str, Any]], bad: BadRows) -> Iterator[tuple[str, Cells]]:
    for place, cells in rows:
        if not isinstance(cells, dict):
            bad.refuse(place, "it is not a mapping of names to values")
        elif reason := _not_utf8(*(cell for cell in cells.values() if isinstance(cell, str))):
            bad.refuse(place, reason)
        else:
            yield place, cells


def _parquet(file: Path) -> Table:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except Exception as error:  # pyarrow has several words for a damaged file
        raise UserError(f"{file} cannot be read as Parquet ({first_line(error)})") from error
    rows = ((f"{file}, row {i}", row) for i, row in enumerate(table.to_pylist(), start=1))
    return Table(str(file), table.column_names, list(rows))


def _not_utf8(*texts: str) -> str | None:
    """A sentence about the first byte that was not UTF-8, which reading left as a surrogate; None if all were."""
    for text in texts:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                return f"byte 0x{ord(text[error.start]) & 0xFF:02x} in it is not UTF-8 text"
    return None
