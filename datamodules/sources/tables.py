"""Tables read row by row from CSV, TSV, JSON lines, YAML, Parquet and the hub, with the file and line of each row.

CSV, JSON and YAML are parsed here and not by `datasets`, whose parsers infer one type per column and reject a whole
file for one bad row. Here a bad row is named by its line or left out. Cells of CSV and YAML stay strings as written in
the file: no number is reformatted, and YAML's `no` is a word.
"""

import csv
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from zoo.console.argument_names import print_notice
from zoo.datamodules.sources.corpus import first_line
from zoo.datamodules.sources.nested_cells import with_nested
from zoo.errors import UserError
from zoo.files import regular_file
from zoo.text_formats.json_text import describe_json_error, dump_json, parse_json, shorten
from zoo.text_formats.yaml_text import describe_yaml_error, parse_texts

Cells = dict[str, Any]

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_SEPARATOR_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", " ": "blanks"}
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "blank": " ", "bar": "|"}  # by their names in options
_SAMPLED_ROWS = 20  # rows that must agree on another separator than the usual one
_MAX_YAML = 1 << 28  # bytes of a YAML file, whose parser needs a hundred times as much memory
_MIN_EXPANDED, _MAX_EXPANSION = 1 << 30, 200  # bytes that any Parquet file may need, and times its own size
_BYTES_PER_CELL = 64  # of a Python object
_MAX_FIELD = 2**31 - 1  # characters in one field; the csv module's own limit is 131,072
_JSON = {".json", ".jsonl", ".ndjson"}
YAML = {".yaml", ".yml"}
SUFFIXES = _SEPARATORS.keys() | _JSON | YAML | {".parquet"}


class BadRows:
    """Policy for rows that cannot be used.

    Args:
        action: "stop" raises UserError, "skip" leaves them out and counts them.
        has_option: whether the user can choose the action.
    """

    def __init__(self, action: str, has_option: bool = True) -> None:
        self._stops = action == "stop"
        self._remedy = "fix it, or set --data.bad_rows skip to leave such rows out" if has_option else "fix it"
        self.reasons: dict[str, str] = {}  # place of a row left out -> reason

    def refuse(self, place: str, reason: str) -> None:
        """Raise UserError for the row at `place`, or leave it out."""
        if self._stops:
            raise UserError(f"{place}: {reason}; {self._remedy}")
        self.leave_out(place, reason)

    def leave_out(self, place: str, reason: str) -> None:
        """Count the row at `place` as left out."""
        self.reasons[place] = reason

    def first(self) -> str:
        """End of a sentence that gives the first row left out; empty where there is none."""
        return next((f"; the first, {place}: {reason}" for place, reason in self.reasons.items()), "")


class Table(NamedTuple):
    """Rows, each with its place ("FILE, line 3"). `columns` are shared by all rows; None if they differ."""

    name: str
    columns: list[str] | None
    rows: list[tuple[str, Cells]]

    @property
    def names(self) -> list[str]:
        """Names of all columns; without a header, those of all rows in order of first appearance."""
        if self.columns is not None:
            return self.columns
        return list(dict.fromkeys(name for _, cells in self.rows for name in cells))


_COMPRESSED = (  # first bytes, name, remedy
    (b"PAR1", "a Parquet", "rename it to end in .parquet"),
    (b"\x1f\x8b", "a gzip", "decompress it first"),
    (b"PK\x03\x04", "a ZIP or Excel", "extract it first, or save the table as CSV"),
)


def input_positions(table: Table, bad: BadRows) -> tuple[list[int], int]:
    """Position of each of a table's rows among all rows of its file, from 0, and the number of all rows.

    Rows that could not be parsed are counted; `bad` has their places.
    """
    parsed = {place for place, _ in table.rows}
    # Places end with the number of a line or a row, unless the file is a single row.
    prefixes = (f"{table.name}, line ", f"{table.name}, row ")
    unparsed = [place for place in bad.reasons if place not in parsed and place.startswith(prefixes)]
    n_rows = len(table.rows) + len(unparsed) + (table.name in bad.reasons and table.name not in parsed)
    if not unparsed:
        return [*range(len(table.rows))], n_rows
    numbers = sorted(int(place.rpartition(" ")[2]) for place in unparsed)
    rows = enumerate(int(place.rpartition(" ")[2]) for place, _ in table.rows)
    return [i + bisect_left(numbers, number) for i, number in rows], n_rows


def read_table(file: Path, column_names: list[str] | None, bad: BadRows, separator: str | None = None) -> Table:
    """The table in `file`; the suffix of its name gives the format.

    A `.txt` file is a TSV in which quotes are ordinary characters.

    Args:
        file: the file to read.
        column_names: names of the columns of a CSV or TSV without a header; None if the first row is the header.
        bad: what to do with rows that cannot be parsed.
        separator: of the columns of a CSV or TSV, one of SEPARATORS; None if it is detected.

    Raises:
        UserError: the file is empty, has another suffix, or has a bad row.
    """
    # The suffix decides the format.
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{file} is not a table that can be read: give one of {', '.join(sorted(SUFFIXES))}")
    regular_file(file)
    if suffix == ".parquet":
        return _read_parquet(file)
    _check_uncompressed(file)
    if suffix in _SEPARATORS:
        return _read_separated(file, column_names, bad, SEPARATORS[separator] if separator else None)
    rows = _read_json(file, bad) if suffix in _JSON else _read_yaml(file, bad)
    return Table(f"{file}", None, list(rows))


def hub_table(name: str, table: Any) -> Table:
    """A split of a hub data set as a table."""
    rows = ((f"{name}, row {i}", with_nested(row)) for i, row in enumerate(table, start=1))
    return Table(name, list(table.column_names), list(rows))


def read_labelled(file: Path, bad: BadRows, label_column: str = "label", text_column: str = "text") -> Table:
    """The lines `label ||| text` of a file, as a table with these two columns.

    Raises:
        UserError: the file is empty, or a line is bad.
    """
    rows: list[tuple[str, Cells]] = []
    for line, content in enumerate(_read_text(file).split("\n"), start=1):
        # The first ||| separates label and text.
        label, bar, text = content.partition("|||")
        if not content.strip():
            continue
        if reason := _not_text(content) or (not bar and "it has no ||| between a label and a text"):
            bad.refuse(f"{file}, line {line}", reason)
        else:
            rows.append((f"{file}, line {line}", {label_column: label.strip(), text_column: text.strip()}))
    return Table(f"{file}", [label_column, text_column], rows)


def _read_text(file: Path) -> str:
    """Content of a file; bytes that are not UTF-8 become surrogates."""
    text = regular_file(file).read_text(encoding="utf-8-sig", errors="surrogateescape")
    if not text.strip():
        raise UserError(f"{file} is empty")
    return text


# ---- CSV and TSV


def _check_uncompressed(file: Path) -> None:
    """Raises UserError if a file with the suffix of a text format is a compressed one."""
    with file.open("rb") as content:
        start = content.read(1024)
    is_binary = any(byte < 9 for byte in start)  # control characters, unlike a text that begins with these letters
    for magic, kind, remedy in _COMPRESSED:
        if is_binary and start.startswith(magic):
            raise UserError(f"{file} is {kind} file with another name: {remedy}")


def _csv_options(file: Path, separator: str) -> dict[str, Any]:
    """Arguments of `csv.reader`. A run of blanks is one separator."""
    quoting = csv.QUOTE_NONE if file.suffix.lower() == ".txt" else csv.QUOTE_MINIMAL
    return {"delimiter": separator, "quoting": quoting, "skipinitialspace": separator == " "}


def _detect_separator(file: Path, names: list[str] | None) -> str:
    """Separator of the fields: the usual one of the suffix, unless only another one gives a table; that is printed.

    A separator gives a table if it splits each of the first rows into the same number of fields, at least two.
    """
    # Try the usual separator first, then the others, on the first rows.
    usual = _SEPARATORS[file.suffix.lower()]
    if names is not None and len(names) == 1:
        return usual
    for separator in (usual, *(other for other in _SEPARATOR_NAMES if other != usual)):
        # Numbers of fields in the first rows; a separator that gives an error is not the right one.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as content:
            rows = csv.reader(content, **_csv_options(file, separator))
            try:
                sizes = {len(fields) for fields in islice(rows, _SAMPLED_ROWS) if fields}
            except csv.Error:
                continue
        # All rows must agree, and with the given names if they are separated by another sign than the usual one.
        if len(sizes) == 1 and min(sizes) > 1 and (separator == usual or names is None or sizes == {len(names)}):
            if separator != usual:
                print_notice(f"{file}: its columns are separated by {_SEPARATOR_NAMES[separator]} (--data.separator)")
            return separator
    return usual


def _read_separated(file: Path, names: list[str] | None, bad: BadRows, separator: str | None) -> Table:
    rows: list[tuple[str, Cells]] = []
    usual_limit = csv.field_size_limit(_MAX_FIELD)  # a setting of the csv module as a whole, restored below
    try:
        options = _csv_options(file, separator or _detect_separator(file, names))
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as content:
            reader = csv.reader(content, strict=True, **options)
            while True:
                # A row may span lines: its place is its first line.
                line = reader.line_num + 1
                try:
                    fields = next(reader, None)
                    if fields is None:
                        break
                    if reason := _not_text(*fields):
                        raise UserError(reason)
                    if not fields:
                        continue  # a blank line
                    # The first row is the header, unless names are given; all others must have as many fields.
                    if names is None:
                        names = _header(fields)
                    elif len(fields) == len(names):
                        rows.append((f"{file}, line {line}", dict(zip(names, fields, strict=True))))
                    else:
                        raise UserError(f"it has {len(fields)} fields, not the {len(names)} of the columns")
                except (csv.Error, UserError) as error:
                    if str(error) == "unexpected end of data":  # everything up to the file's end is inside the quotes
                        raise UserError(
                            f"{file}, line {line}: a quote in this row is never closed; close it"
                        ) from error
                    # An error in the first row leaves the columns unknown, so it always stops.
                    if names is None:
                        raise UserError(f"{file} has no header that can be read: {error}") from error
                    bad.refuse(f"{file}, line {line}", str(error).replace("'\t'", "a tab"))
    finally:
        csv.field_size_limit(usual_limit)
    if names is None:
        raise UserError(f"{file} is empty")
    return Table(f"{file}", names, rows)


def _header(fields: list[str]) -> list[str]:
    names = [field.strip() for field in fields]
    _check_unique(names)
    return names


def _check_unique(names: list[str]) -> None:
    """Raises UserError if two columns have the same name."""
    if (name := repeated_name(names)) is not None:
        raise UserError(f"two columns are called {shorten(name)}")


def repeated_name(names: Iterable[str]) -> str | None:
    """The first name that occurs a second time; None if all differ."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


# ---- JSON, YAML and Parquet


def _read_json(file: Path, bad: BadRows) -> Iterator[tuple[str, Cells]]:
    """One object per line; or one list of objects, which may span lines."""
    # A file that starts with a bracket is one list; otherwise each line is an object.
    text = _read_text(file)
    if text.lstrip().startswith("["):
        try:
            # Rows of a list have numbers instead of lines.
            items = parse_json(text)
        except ValueError as error:
            raise UserError(f"{file} is not valid JSON: {_not_utf8(text) or describe_json_error(error)}") from error
        yield from _mappings(((f"{file}, row {i}", item) for i, item in enumerate(items, start=1)), bad)
        return
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                # A bad line does not affect the others.
                item = parse_json(content)
            except ValueError as error:
                reason = describe_json_error(error, with_line=False)
                bad.refuse(f"{file}, line {line}", _not_utf8(content) or f"it is not valid JSON ({reason})")
                continue
            yield from _mappings([(f"{file}, line {line}", item)], bad)


def _read_yaml(file: Path, bad: BadRows) -> Iterator[tuple[str, Cells]]:
    """A mapping is one row; a list of mappings is as many rows."""
    text = regular_file(file, max_bytes=_MAX_YAML).read_text(encoding="utf-8-sig", errors="surrogateescape")
    try:
        item = parse_texts(text)
    except yaml.YAMLError as error:
        bad.refuse(f"{file}", _not_utf8(text) or f"it is not valid YAML{describe_yaml_error(error)}")
        return
    # A list has a row for each entry; a mapping is a single row.
    if isinstance(item, list):
        yield from _mappings(((f"{file}, row {i}", row) for i, row in enumerate(item, start=1)), bad)
    elif not item:
        bad.refuse(f"{file}", "it is empty")
    else:
        yield from _mappings([(f"{file}", item)], bad)


def _mappings(rows: Iterable[tuple[str, Any]], bad: BadRows) -> Iterator[tuple[str, Cells]]:
    """The rows that are mappings and UTF-8 text."""
    for place, cells in rows:
        # Each row must map names to values, and its texts must be UTF-8.
        if not isinstance(cells, dict):
            bad.refuse(place, "it is not a mapping of names to values")
        elif reason := _not_utf8(*cells, *map(_text_of, cells.values())):
            bad.refuse(place, reason)
        else:
            yield place, with_nested(cells)


def _text_of(cell: Any) -> str:
    """The text in a cell, nested cells included; "" for a number."""
    return (
        cell if isinstance(cell, str) else dump_json(cell, ensure_ascii=False) if isinstance(cell, list | dict) else ""
    )


def _read_parquet(file: Path) -> Table:
    import pyarrow.parquet

    # A compressed file may hold any number of cells: they are counted in small batches, before they become objects.
    limit = max(_MIN_EXPANDED, _MAX_EXPANSION * file.stat().st_size)
    n_bytes, cells = 0, []
    try:
        with pyarrow.parquet.ParquetFile(file) as content:
            names = content.schema_arrow.names
            n_bytes = _BYTES_PER_CELL * content.metadata.num_rows * len(names)
            for batch in content.iter_batches(1024) if n_bytes <= limit else ():
                n_bytes += batch.nbytes
                if n_bytes > limit:
                    break
                cells += batch.to_pylist()
    except Exception as error:  # pyarrow raises several kinds of exceptions for a damaged file
        raise UserError(f"{file} cannot be read as Parquet ({first_line(error)})") from error
    if n_bytes > limit:
        raise UserError(
            f"{file} needs more than {limit >> 20} MiB of memory, although it has {file.stat().st_size} bytes: write "
            "it as CSV, or split it into several files"
        )
    try:
        _check_unique(names)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return Table(f"{file}", names, [(f"{file}, row {i}", with_nested(row)) for i, row in enumerate(cells, start=1)])


def _not_text(*texts: str) -> str | None:
    """Sentence about the first byte that is not UTF-8, or is zero, which no text contains; None without one."""
    if any("\0" in text for text in texts):
        return "it contains a zero byte, which UTF-16 text or a binary file has; convert it to UTF-8"
    return _not_utf8(*texts)


def _not_utf8(*texts: str) -> str | None:
    """Sentence about the first byte that was not UTF-8, which reading turned into a surrogate; None without one."""
    for text in texts:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                return f"byte 0x{ord(text[error.start]) & 0xFF:02x} in it is not UTF-8 text"
    return None
