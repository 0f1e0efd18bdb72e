"""Tables read row by row from CSV, TSV, JSON lines, YAML, Parquet and the hub, with the file and line of each row.

CSV, JSON and YAML are parsed here and not by `datasets`, whose parsers infer one type per column and reject a whole
file for one bad row. Here a bad row is named by its line or left out. Cells of CSV and YAML stay strings as written in
the file: no number is reformatted, and YAML's `no` is a word.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from zoo.datamodules.sources.corpus import first_line
from zoo.datamodules.sources.nested_cells import with_nested
from zoo.datamodules.sources.separated import SEPARATORS, USUAL, read_separated
from zoo.datamodules.sources.table_rows import BadRows, Cells, Table, check_unique, not_text, not_utf8
from zoo.errors import UserError
from zoo.files import regular_file
from zoo.text_formats.json_text import describe_json_error, dump_json, parse_json
from zoo.text_formats.yaml_text import describe_yaml_error, parse_texts

_MAX_YAML = 1 << 28  # bytes of a YAML file, whose parser needs a hundred times as much memory
_MIN_EXPANDED, _MAX_EXPANSION = 1 << 30, 200  # bytes that any Parquet file may need, and times its own size
_BYTES_PER_CELL = 64  # of a Python object
_JSON = {".json", ".jsonl", ".ndjson"}
YAML = {".yaml", ".yml"}
_COMPRESSED = (  # first bytes, name, remedy
    (b"PAR1", "a Parquet", "rename it to end in .parquet"),
    (b"\x1f\x8b", "a gzip", "decompress it first"),
    (b"PK\x03\x04", "a ZIP or Excel", "extract it first, or save the table as CSV"),
)
SUFFIXES = USUAL.keys() | _JSON | YAML | {".parquet"}


def read_table(file: Path, column_names: list[str] | None, bad: BadRows, separator: str | None = None) -> Table:
    """The table in `file`; the suffix of its name gives the format.

    A `.txt` file is a TSV in which quotes are ordinary characters.

    Args:
        file: the file to read.
        column_names: names of the columns of a CSV or TSV without a header; None if the first row is the header.
        bad: what to do with rows that cannot be parsed.
        separator: separator of the columns of a CSV or TSV, one of SEPARATORS; None if it is detected.

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
    if suffix in USUAL:
        return read_separated(file, column_names, bad, SEPARATORS[separator] if separator else None)
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
        if reason := not_text(content) or (not bar and "it has no ||| between a label and a text"):
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


def _check_uncompressed(file: Path) -> None:
    """Raises UserError if a file with the suffix of a text format is a compressed one."""
    with file.open("rb") as content:
        start = content.read(1024)
    is_binary = any(byte < 9 for byte in start)  # control characters, unlike a text that begins with these letters
    for magic, kind, remedy in _COMPRESSED:
        if is_binary and start.startswith(magic):
            raise UserError(f"{file} is {kind} file with another name: {remedy}")


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
            raise UserError(f"{file} is not valid JSON: {not_utf8(text) or describe_json_error(error)}") from error
        yield from _mappings(((f"{file}, row {i}", item) for i, item in enumerate(items, start=1)), bad)
        return
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                # A bad line does not affect the others.
                item = parse_json(content)
            except ValueError as error:
                reason = describe_json_error(error, with_line=False)
                bad.refuse(f"{file}, line {line}", not_utf8(content) or f"it is not valid JSON ({reason})")
                continue
            yield from _mappings([(f"{file}, line {line}", item)], bad)


def _read_yaml(file: Path, bad: BadRows) -> Iterator[tuple[str, Cells]]:
    """A mapping is one row; a list of mappings is as many rows."""
    text = regular_file(file, max_bytes=_MAX_YAML).read_text(encoding="utf-8-sig", errors="surrogateescape")
    try:
        item = parse_texts(text)
    except yaml.YAMLError as error:
        bad.refuse(f"{file}", not_utf8(text) or f"it is not valid YAML{describe_yaml_error(error)}")
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
        elif reason := not_utf8(*cells, *map(_text_of, cells.values())):
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
        check_unique(names)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    return Table(f"{file}", names, [(f"{file}, row {i}", with_nested(row)) for i, row in enumerate(cells, start=1)])
