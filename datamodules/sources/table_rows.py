"""Rows of tables: each with its place, the policy for rows that cannot be used, and checks of texts and names."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any, NamedTuple

from zoo.console.argument_names import print_notice
from zoo.errors import UserError
from zoo.text_formats.json_text import shorten

Cells = dict[str, Any]


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

    def print_left_out(self, noun: str = "row") -> None:
        """Print how many rows, or what else they are called, were left out, and why the first one was."""
        if n := len(self.reasons):
            print_notice(f"{n} {noun}{'s were' if n > 1 else ' was'} left out{self.first()}")

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


def check_unique(names: list[str]) -> None:
    """Raises UserError if two columns have the same name."""
    if (name := repeated_name(names)) is not None:
        raise UserError(f"two columns are called {shorten(name)}")


def repeated_name(names: Iterable[str]) -> str | None:
    """The first name that occurs a second time; None if all differ."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def not_text(*texts: str) -> str | None:
    """Sentence about the first byte that is not UTF-8, or is zero, which no text contains; None without one."""
    if any("\0" in text for text in texts):
        return "it contains a zero byte, which UTF-16 text or a binary file has; convert it to UTF-8"
    return not_utf8(*texts)


def not_utf8(*texts: str) -> str | None:
    """Sentence about the first byte that was not UTF-8, which reading turned into a surrogate; None without one."""
    for text in texts:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                return f"byte 0x{ord(text[error.start]) & 0xFF:02x} in it is not UTF-8 text"
    return None
