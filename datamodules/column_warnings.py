"""Warnings of columns whose numbers a model cannot read: they are equal after rounding, or some cells are words."""

import sys
from collections.abc import Sequence

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.datamodules.row_text import is_missing, list_columns
from zoo.datamodules.sources.tables import Cells
from zoo.tokenizers.numerals import NUMBER, rounded
from zoo.training.text_statistics import MOST_DIGITS, MOST_TEXTS, loses_most


def warn_of_rounding(rows: Sequence[Cells], columns: Sequence[str], digits: int | None) -> None:
    """Print the columns whose numbers, years for example, are equal or mostly equal after rounding.

    Args:
        rows: of a table; of more than `MOST_TEXTS`, this many evenly spaced ones are used.
        columns: that become texts.
        digits: significant digits of the rounded numbers; None where they are not rounded.
    """
    if not digits or not rows:
        return
    sample = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, MOST_TEXTS).round().astype(int))]
    remedy = "subtract a constant from them" if digits >= MOST_DIGITS else "raise --data.round_digits"
    for name in columns:
        cells = [row.get(name) for row in sample]
        words = sorted({str(cell) for cell in cells if not is_missing(cell)})
        if len(words) < 2:
            continue
        shown, first = list_columns([name]), rounded(words[0], digits)
        if all(rounded(word, digits) == first for word in words):
            _print(f"the numbers in column {shown} are all equal after rounding: {remedy}")
        elif all(NUMBER.fullmatch(word.strip()) for word in words):
            numbers = np.array([*map(float, words)])
            numbers = numbers[np.isfinite(numbers)]
            if len(numbers) and loses_most(numbers, digits):
                _print(
                    f"most numbers in column {shown} are equal to others after rounding to {digits} digits: "
                    f"if they matter, {remedy}; if not, leave it out of --data.columns"
                )


def _print(message: str) -> None:
    rank_zero_only(print)(f"zoo: {message}", file=sys.stderr)
