"""Numbers of a table that differ in the file and are equal as float64, which holds 15 to 17 significant digits."""

import warnings
from decimal import Decimal
from typing import Any

_EXACT_DIGITS = 15  # decimal digits that float64 represents exactly: different numbers remain different
_ENOUGH = 0.8  # share of the distinct numbers that must stay distinct


class RoundedNumbers:
    """The distinct numbers of one column that float64 does not hold exactly.

    Args:
        column: name of the column, for the warning.
    """

    def __init__(self, column: str) -> None:
        self.column = column
        self._written: set[Decimal] = set()
        self._rounded: set[float] = set()
        self._first = ""

    def add(self, place: str, cell: Any, number: float) -> None:
        """Add a cell and the float64 that it becomes."""
        # A float of the file was converted before; and few digits are held exactly.
        text = "" if isinstance(cell, float) else str(cell).strip()
        if len(text) <= _EXACT_DIGITS or number == 0 or text == repr(number):
            return
        written = Decimal(text)
        if written == Decimal(repr(number)):
            return
        self._first = self._first or f"{place}: its {self.column!r}, {text:.40}, is {number!r} as float64"
        self._written.add(written)
        self._rounded.add(number)

    def warn(self) -> None:
        """Warn, with the first place and the remedy, if too few of these numbers stay distinct."""
        before, after = len(self._written), len(self._rounded)
        if after < _ENOUGH * before:
            warnings.warn(
                f"{self._first}, and {before} distinct numbers of many digits become {after}; subtract a constant from "
                "them in the file, so that they have at most 15 digits",
                stacklevel=2,
            )
