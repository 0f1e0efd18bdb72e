"""Warnings of columns whose numbers a model cannot read: they are equal after rounding, or some cells are words."""

from collections.abc import Sequence

import numpy as np

from zoo.console.argument_names import print_notice
from zoo.datamodules.row_text import is_missing, list_columns
from zoo.datamodules.sources.tables import Cells
from zoo.datamodules.table_columns import is_number
from zoo.text_formats.json_text import shorten
from zoo.tokenizers.numerals import NUMBER, rounded
from zoo.training.text_statistics import MOST_DIGITS, MOST_TEXTS, loses_most

MOST_ROWS = 10_000  # a teacher has fewer
LEAST_CELLS = 3
NEARLY_ALL = 0.9  # share of the cells of a column


def warn_of_words(rows: Sequence[Cells], columns: Sequence[str]) -> None:
    """Print the columns in which nearly all cells are numbers, and one of the others, which make it a column of words.

    Args:
        rows: of a table; of more than `MOST_ROWS`, this many evenly spaced ones are used.
        columns: that become texts.
    """
    sample = _evenly_spaced(rows, MOST_ROWS)
    for name in columns:
        cells = [cell for row in sample if not is_missing(cell := row.get(name))]
        others = [cell for cell in cells if not is_number(cell)]
        if others and len(cells) > LEAST_CELLS and len(others) <= max(1, (1 - NEARLY_ALL) * len(cells)):
            verb = "is no number" if len(others) == 1 else "are no numbers"
            count = f"{len(others)} of the {len(cells)} values in column {list_columns([name])}"
            print_notice(
                f"{count} {verb}, such as {shorten(others[0])}, and "
                "the column is read as words: correct such cells, or leave them empty where the number is unknown"
            )


def warn_of_rounding(rows: Sequence[Cells], columns: Sequence[str], digits: int | None) -> None:
    """Print the columns whose numbers, years for example, are equal or mostly equal after rounding.

    Args:
        rows: of a table; of more than `MOST_TEXTS`, this many evenly spaced ones are used.
        columns: that become texts.
        digits: significant digits of the rounded numbers; None where they are not rounded.
    """
    if not digits:
        return
    sample = _evenly_spaced(rows, MOST_TEXTS)
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


def _evenly_spaced(rows: Sequence[Cells], most: int) -> list[Cells]:
    return [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))] if rows else []
