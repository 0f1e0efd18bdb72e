"""Tables in CSV and TSV: detection of the separator, and rows that are named by their line."""

import csv
from itertools import islice
from pathlib import Path
from typing import Any

from zoo.console.argument_names import print_notice
from zoo.datamodules.sources.table_rows import BadRows, Cells, Table, check_unique, not_text
from zoo.errors import UserError

USUAL = {".csv": ",", ".tsv": "\t", ".txt": "\t"}  # separators by suffix
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "blank": " ", "bar": "|"}  # by their names in options
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", " ": "blanks"}  # of those that are detected
_SAMPLED_ROWS = 20  # rows that must agree on another separator than the usual one
_MAX_FIELD = 2**31 - 1  # characters in one field; the csv module's own limit is 131,072


def _csv_options(file: Path, separator: str) -> dict[str, Any]:
    """Arguments of `csv.reader`. A run of blanks is one separator."""
    quoting = csv.QUOTE_NONE if file.suffix.lower() == ".txt" else csv.QUOTE_MINIMAL
    return {"delimiter": separator, "quoting": quoting, "skipinitialspace": separator == " "}


def _detect_separator(file: Path, names: list[str] | None) -> str:
    """Separator of the fields: the usual one of the suffix, unless only another one gives a table; that is printed.

    A separator gives a table if it splits each of the first rows into the same number of fields, at least two.
    """
    # Try the usual separator first, then the others, on the first rows.
    usual = USUAL[file.suffix.lower()]
    if names is not None and len(names) == 1:
        return usual
    for separator in (usual, *(other for other in _NAMES if other != usual)):
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
                print_notice(f"{file}: its columns are separated by {_NAMES[separator]} (--data.separator)")
            return separator
    return usual


def read_separated(file: Path, names: list[str] | None, bad: BadRows, separator: str | None) -> Table:
    """The table in a CSV or TSV file.

    Args:
        file: the file.
        names: names of the columns; None if the first row has them.
        bad: what to do with rows that cannot be parsed.
        separator: separator of the fields; None if it is detected.

    Raises:
        UserError: the file has no header, a quote is never closed, or a row is bad.
    """
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
                    if reason := not_text(*fields):
                        raise UserError(reason)
                    if not fields:
                        continue  # a blank line
                    # The first row is the header, unless names are given; all others must have as many fields.
                    if names is None:
                        header = [field.strip() for field in fields]
                        check_unique(header)
                        names = header
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
