"""Warnings of columns: their numbers are equal after rounding, or words, or those of the target."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from zoo.console.argument_names import print_notice
from zoo.datamodules.regression_settings import RegressionSettings
from zoo.datamodules.row_text import is_missing, list_columns
from zoo.datamodules.sources.table_rows import Cells, Table
from zoo.datamodules.table_columns import is_number
from zoo.datamodules.written_numbers import plain_number
from zoo.text_formats.json_text import shorten
from zoo.tokenizers.numerals import DATE, NUMBER, rounded
from zoo.training.number_range import evenly_spaced
from zoo.training.text_statistics import MOST_DIGITS, MOST_TEXTS, loses_most

MOST_ROWS = 10_000  # a teacher has fewer
_DATE_OR_TIME = re.compile(
    r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})(?:[T ]+\d{1,2}:\d{2}.*)?|\d{1,2}:\d{2}(?::\d{2})?"
)
_INDEX_NAMES = ("", "Unnamed: 0")
LEAST_CELLS = 3
LEAST_DISTINCT = 10
NEARLY_ALL = 0.9  # share of the cells of a column


def warn_of_columns(
    rows: Sequence[Cells],
    columns: Sequence[str],
    targets: np.ndarray,
    names: Sequence[str],
    settings: RegressionSettings,
) -> None:
    """Print the columns that a model reads as something else than the user may expect.

    Args:
        rows: N rows of a table.
        columns: columns that become texts.
        targets: (N, K) their targets.
        names: names of the K targets.
        settings: how numbers become texts.
    """
    warn_of_words(rows, columns)
    warn_of_written_numbers(rows, columns)
    warn_of_dates(rows, columns, settings.power_tokens)
    warn_of_rounding(rows, columns, settings.round_digits)
    warn_of_copied_targets(rows, columns, targets, names)


def index_column(table: Table, columns: Sequence[str]) -> str | None:
    """The column without a name that numbers the rows, as pandas writes it; None without one."""
    for name in columns:
        if name.strip() not in _INDEX_NAMES:
            continue
        cells = [str(cells.get(name)) for _, cells in table.rows]
        if len(cells) > 1 and all(re.fullmatch("[0-9]{1,15}", cell) for cell in cells):
            first = int(cells[0])
            if [*map(int, cells)] == [*range(first, first + len(cells))]:
                return name
    return None


def warn_of_words(rows: Sequence[Cells], columns: Sequence[str]) -> None:
    """Print the columns in which nearly all cells are numbers, and one of the others, which make it a column of words.

    Args:
        rows: rows of a table; of more than `MOST_ROWS`, this many evenly spaced ones are used.
        columns: columns that become texts.
    """
    for name, cells in _known_cells(rows, columns):
        others = [cell for cell in cells if not is_number(cell)]
        if others and len(cells) > LEAST_CELLS and len(others) <= max(1, (1 - NEARLY_ALL) * len(cells)):
            verb = "is no number" if len(others) == 1 else "are no numbers"
            count = f"{len(others)} of the {len(cells)} values in column {list_columns([name])}"
            print_notice(
                f"{count} {verb}, such as {shorten(others[0])}, and "
                "the column is read as words: correct such cells, or leave them empty where the number is unknown"
            )


def warn_of_written_numbers(rows: Sequence[Cells], columns: Sequence[str]) -> None:
    """Print the columns in which nearly all cells are numbers with units, signs or separators, such as "1,200 EUR".

    Args:
        rows: rows of a table; of more than `MOST_ROWS`, this many evenly spaced ones are used.
        columns: columns that become texts.
    """
    for name, cells in _known_cells(rows, columns):
        written = {cell: plain for cell in dict.fromkeys(map(str, cells)) if (plain := plain_number(cell)) is not None}
        written = {cell: plain for cell, plain in written.items() if not is_number(cell)}
        # Few distinct values, such as 4wd and 2wd, are categories.
        if len(written) >= LEAST_DISTINCT and sum(str(cell) in written for cell in cells) >= NEARLY_ALL * len(cells):
            cell, plain = next(iter(written.items()))
            print_notice(
                f"the values in column {list_columns([name])}, such as {shorten(cell)}, are read as words, not as "
                f"numbers: write {plain}, without units, signs and thousands separators"
            )


def warn_of_dates(rows: Sequence[Cells], columns: Sequence[str], is_split: bool) -> None:
    """Print the columns of dates or times of which most are different, so that each is a word that is rarely seen.

    Args:
        rows: rows of a table; of more than `MOST_ROWS`, this many evenly spaced ones are used.
        columns: columns that become texts.
        is_split: whether dates such as 1970-01-31 become three words, which a model can compare.
    """
    for name, known in _known_cells(rows, columns):
        cells = [str(cell).strip() for cell in known]
        dates = [cell for cell in cells if _DATE_OR_TIME.fullmatch(cell) and not (is_split and DATE.fullmatch(cell))]
        if len(dates) >= NEARLY_ALL * len(cells) and len({*dates}) >= max(LEAST_DISTINCT, len(dates) / 4):
            print_notice(
                f"the dates or times in column {list_columns([name])}, such as {shorten(dates[0])}, are read as words, "
                "most of which differ: replace them by numbers, such as the month and the days since the first date"
            )


def warn_of_copied_targets(
    rows: Sequence[Cells], columns: Sequence[str], targets: np.ndarray, names: Sequence[str]
) -> None:
    """Print the columns whose numbers are those of a target in all rows.

    Args:
        rows: N rows of a table.
        columns: columns that become texts.
        targets: (N, K) their targets.
        names: names of the K targets.
    """
    if len(rows) < LEAST_DISTINCT:
        return
    columns_of_targets = zip(names, targets.T, strict=False)  # without names where the rows have no targets
    values_of = {target: values.tolist() for target, values in columns_of_targets if values.min() < values.max()}
    for name in columns:
        for target, values in values_of.items():
            known = zip(rows, values, strict=True)
            if all(is_number(row.get(name)) and float(row[name]) == value for row, value in known):
                print_notice(
                    f"column {list_columns([name])} has the numbers of the target {target!r} in all rows, so that the "
                    "model only copies it: leave it out of --data.columns if it is unknown for new rows"
                )


def warn_of_rounding(rows: Sequence[Cells], columns: Sequence[str], digits: int | None) -> None:
    """Print the columns whose numbers, years for example, are equal or mostly equal after rounding.

    Args:
        rows: rows of a table; of more than `MOST_TEXTS`, this many evenly spaced ones are used.
        columns: columns that become texts.
        digits: significant digits of the rounded numbers; None where they are not rounded.
    """
    if not digits:
        return
    sample = [rows[i] for i in evenly_spaced(len(rows), MOST_TEXTS)]
    remedy = "subtract a constant from them" if digits >= MOST_DIGITS else "raise --data.round_digits"
    for name in columns:
        cells = [row.get(name) for row in sample]
        words = sorted({str(cell) for cell in cells if not is_missing(cell)})
        if len(words) < 2:
            continue
        shown, first = list_columns([name]), rounded(words[0], digits)
        if all(rounded(word, digits) == first for word in words):
            print_notice(f"the numbers in column {shown} are all equal after rounding: {remedy}")
        elif all(NUMBER.fullmatch(word.strip()) for word in words):
            numbers = np.array([*map(float, words)])
            numbers = numbers[np.isfinite(numbers)]
            if len(numbers) and loses_most(numbers, digits):
                print_notice(
                    f"most numbers in column {shown} are equal to others after rounding to {digits} digits: "
                    f"if they matter, {remedy}; if not, leave it out of --data.columns"
                )


def _known_cells(rows: Sequence[Cells], columns: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    """Each column, and its cells that are not missing in at most `MOST_ROWS` evenly spaced rows."""
    sample = [rows[i] for i in evenly_spaced(len(rows), MOST_ROWS)]
    for name in columns:
        yield name, [cell for row in sample if not is_missing(cell := row.get(name))]
