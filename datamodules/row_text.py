"""Rows of a table as (text, targets): one column that holds the text, or many columns rendered as one text."""

import difflib
import json
import math
import re
from collections.abc import Collection, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from zoo.datamodules.float64_targets import RoundedNumbers
from zoo.datamodules.rows import Rows
from zoo.datamodules.sources.labels import label_text
from zoo.datamodules.sources.nested_cells import contains_path, list_paths
from zoo.datamodules.sources.table_rows import BadRows, Cells, Table, input_positions, repeated_name
from zoo.datamodules.written_numbers import plain_number
from zoo.errors import UserError
from zoo.text_formats.json_text import shorten
from zoo.tokenizers.numerals import NUMBER

RowFormat = Literal["text", "key_value", "json", "values"]

# Words for a value that is not known; in a column of categories each may be a category as well.
_MISSING = {
    "-", "--", "---", "\u2013", "\u2014", "na", "n/a", "n.a.", "<na>", "#n/a", "#na", "null", "none", "nil", "missing",
    "unknown",
}  # fmt: skip
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")


class RowLayout(NamedTuple):
    """Roles of a table's columns.

    Args:
        columns: the text column, or the columns rendered as a text.
        targets: columns of the K numbers to predict, or the one of the labels; empty where targets are not read.
        row_format: how `columns` become a text.
        group: column whose equal values keep rows in one split; None for no groups.
        classes: label -> number of the class; None if targets are numbers.
        is_stored: whether the columns come from a trained model, which needs all of them.
    """

    columns: list[str]
    targets: list[str]
    row_format: RowFormat
    group: str | None = None
    classes: dict[str, int] | None = None
    is_stored: bool = False

    @property
    def input_option(self) -> str:
        """The option that names the columns of the text."""
        return "text_column" if self.row_format == "text" else "columns"

    @property
    def target_option(self) -> str:
        """The option that names the columns of the targets."""
        return "target_columns" if self.classes is None else "label_column"

    def read(self, tables: Sequence[Table], bad: BadRows, need_targets: bool = True) -> Rows:
        """All rows of the tables.

        Args:
            tables: at least one.
            bad: what to do with rows that cannot be used.
            need_targets: False turns a missing or invalid target into NaN.

        Raises:
            UserError: a table lacks a column, no row can be used, a row is bad, or a column has two roles.
        """
        texts, targets, places, groups, positions = [], [], [], [], []
        self._check_roles(tables)
        self._check_keys(tables)
        rounded = [] if self.classes is not None else [RoundedNumbers(name) for name in self.targets]
        # Missing columns are an error of the options; problems of single rows are left to the policy for bad rows.
        n_before = 0  # rows of the tables before
        for table in tables:
            self._check_columns(table, need_targets)
            table_positions, n_rows = input_positions(table, bad)
            for position, (place, cells) in zip(table_positions, table.rows, strict=True):
                try:
                    # The row's text, its targets, and its group (its place, if rows are independent).
                    text, values = self.text(cells), [self.target(cells, name, need_targets) for name in self.targets]
                    group = (
                        _cell(cells, self.group, "group_column") if self.group is not None and need_targets else place
                    )
                except UserError as error:
                    bad.refuse(place, str(error))
                    continue
                for column, number in zip(rounded, values, strict=False):
                    if not math.isnan(number):
                        column.add(place, cells[column.column], number)
                texts.append(text)
                targets.append(values or [math.nan])
                places.append(place)
                groups.append(str(group))
                positions.append(n_before + position)
            n_before += n_rows
        # Nothing was left: name the first table, and the reason of the first bad row.
        if not texts:
            others = f", nor do the {len(tables) - 1} files read with it" if len(tables) > 1 else ""
            remedy = "" if bad.first() else ": give a file with rows"
            raise UserError(f"{tables[0].name} has no row that can be used{others}{bad.first()}{remedy}")
        for column in rounded:
            column.warn()
        numbers = np.array(targets, dtype=np.float64).reshape(-1, len(self.targets) or 1)
        return Rows(texts, numbers, places, groups, np.array(positions))

    def _check_columns(self, table: Table, need_targets: bool) -> None:
        """Raises UserError if the header lacks a column: then the option is wrong, not a row."""
        # The options that name columns, with the columns that they name.
        options = {self.input_option: self.columns}
        if need_targets:
            options |= {self.target_option: self.targets, "group_column": [] if self.group is None else [self.group]}
        if need_targets and not self.targets:
            raise UserError(
                "the columns of the numbers to predict are unknown: "
                f"set --data.target_columns to some of {list_columns(_paths(table))}"
            )
        if table.columns is None:
            return
        known = set(table.columns)
        for option, names in options.items():
            for name in names:
                if name not in known and not any(name in cells for _, cells in table.rows):
                    start = f"{table.name} has no column {name!r}{nearest_column(name, table.columns)}"
                    if self.is_stored and option == "columns":
                        raise UserError(
                            f"{start}, which the model was trained with: add it to the file, with empty cells where "
                            "the value is unknown"
                        )
                    if self.is_stored and option == self.target_option:  # validate or test
                        raise UserError(
                            f"{start}, which holds what the model predicts: add it to the file, name the column that "
                            f"holds it with --data.{option}, or use `zoo predict`, which needs no such column"
                        )
                    raise UserError(
                        f"{start}: set --data.{option} to columns that it has, {list_columns(table.columns)}"
                    )

    def _check_keys(self, tables: Sequence[Table]) -> None:
        """Raises UserError if an input column is a key in no row of a file without a header: it is misspelt.

        A key that only some rows have is an empty cell in the others. Files of one row are checked together.
        """
        if self.row_format == "text":  # a row without its text is a bad row
            return
        headless = [table for table in tables if table.columns is None]
        single = [table for table in headless if len(table.rows) == 1]
        for group in (single, *([table] for table in headless if len(table.rows) > 1)):
            known = dict.fromkeys(name for table in group for name in table.names)
            for name in self.columns if known else []:
                if name not in known and not any(name in cells for table in group for _, cells in table.rows):
                    start = f"{group[0].name} has {name!r} in no row{nearest_column(name, known)}"
                    if self.is_stored:
                        raise UserError(
                            f"{start}, but the model was trained with it: "
                            f'add it to the rows, or "{name}": null to a row if the value is unknown'
                        )
                    raise UserError(
                        f"{start}: set --data.columns to keys "
                        f'that it has, {list_columns(known)}, or add "{name}": null to a row if the value is unknown'
                    )

    def _check_roles(self, tables: Sequence[Table]) -> None:
        """Raises UserError if a column is named twice, or is both an input and a target, or contains a target."""
        inputs, targets = self.input_option, self.target_option
        for option, names in ((inputs, self.columns), (targets, self.targets)):
            if (repeated := repeated_name(names)) is not None:
                raise UserError(f"--data.{option} names {repeated!r} twice: name each column once")
        if both := [name for name in self.targets if name in self.columns]:
            raise UserError(
                f"{both[0]!r} is a target and would be an input as well: drop it from --data.{inputs} or from "
                f"--data.{targets}"
            )
        for name, target in ((n, t) for n in self.columns for t in self.targets if t.startswith(f"{n}.")):
            if any(contains_path(cells.get(name), target[len(name) + 1 :]) for t in tables for _, cells in t.rows):
                raise UserError(
                    f"{name!r} contains the target {target!r}, which would be an input as well: name the other cells "
                    f"of {name!r} in --data.{inputs}, such as {name}.KEY"
                )

    def target(self, cells: Cells, name: str, needed: bool = True) -> float:
        """The number in column `name`, or the number of its class; NaN for an invalid cell that is not needed.

        Raises:
            UserError: the cell is needed and missing, not a finite number, or the label of no class.
        """
        try:
            return self._parse_target(_cell(cells, name, self.target_option), name)
        except UserError:
            if needed:
                raise
            return math.nan

    def _parse_target(self, cell: Any, name: str) -> float:
        # An empty cell is neither a number nor a label.
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            raise UserError(f"its {'target' if self.classes is None else 'label'} {name!r} is empty")
        if self.classes is not None:
            label = label_text(cell)
            # A label is accepted as it is written, or as a whole number without decimals.
            number = self.classes.get(str(cell).strip(), self.classes.get(label))
            if number is None:
                raise UserError(f"its label {shorten(label)} is none of {list_columns(self.classes)}")
            return float(number)
        try:
            # Python accepts True, 1_000 and the digits of all scripts.
            if isinstance(cell, bool) or (isinstance(cell, str) and ("_" in cell or not cell.strip().isascii())):
                raise ValueError
            value = float(cell)
        except (ValueError, TypeError, OverflowError):
            raise UserError(f"its target {name!r} is {shorten(cell)}, not a number{_plainer(cell)}") from None
        # float() also accepts "inf" and "nan".
        if not math.isfinite(value):
            raise UserError(f"its target {name!r} is {value}, not a finite number")
        if value == 0 and isinstance(cell, str) and re.search("[1-9]", cell.lower().partition("e")[0]):
            raise UserError(f"its target {name!r} is {shorten(cell.strip())}, too small for float64: it would be 0")
        return value

    def text(self, cells: Cells) -> str:
        """The row's text.

        Raises:
            UserError: it is empty, or the text column holds a list or a mapping.
        """
        # A text column is used unchanged.
        if self.row_format == "text":
            cell = _cell(cells, self.columns[0], "text_column")
            if isinstance(cell, list | dict):
                raise UserError(f"its {self.columns[0]!r} is {shorten(cell)}, not a text")
            text = "" if cell is None else str(cell)
            if not text.strip():
                raise UserError(f"its text, {self.columns[0]!r}, is empty")
            return text
        # Several columns are rendered in their order; at least one must hold something.
        words = {name: _word(cells.get(name)) for name in self.columns}
        if not any(words.values()):
            raise UserError(f"all of {list_columns(self.columns)} are empty in it")
        if self.row_format == "values":
            return " ".join(word or "-" for word in words.values())
        if self.row_format == "json":
            return "{" + ", ".join(f"{_quote(name)}: {_literal(word)}" for name, word in words.items()) + "}"
        return ", ".join(f"{name}: {word}" for name, word in words.items() if word)


def parse_columns(names: str | list[str] | None, known: Collection[str] = ()) -> list[str]:
    """Column names that an option gives: a list; or a string, split at commas unless all of it is one of `known`.

    A name that is not in `known` matches one that differs only in leading or trailing blanks.
    """
    if not names:
        return []
    # A string may be one name that contains commas.
    known = dict.fromkeys(known)  # fast to search
    if isinstance(names, str):
        names = [names] if names in known else [name.strip() for name in names.split(",") if name.strip()]
    stripped = {name.strip(): name for name in known}
    return [name if name in known else stripped.get(name.strip(), name) for name in names]


def _plainer(cell: Any) -> str:
    """How a target that is not a number is written as one; "" where that is unknown."""
    if str(cell).strip().lower() in ("true", "false", "yes", "no"):
        return ": write 1 or 0"
    plain = plain_number(cell)
    return "" if plain is None else f": write {plain} (no unit, sign or thousands separator; a point before decimals)"


def _paths(table: Table) -> list[str]:
    """Names of columns, with the paths of cells in mappings; those in the first rows."""
    return list_paths(table.names, [cells for _, cells in table.rows[:100]])


def nearest_column(name: str, names: Collection[str]) -> str:
    """A question for the column with the most similar name; "" without one."""
    known = {other[:100].casefold(): other[:100] for other in islice(names, 1000)}
    near = difflib.get_close_matches(name[:100].casefold(), known, n=1)
    return f" (did you mean {known[near[0]]!r}?)" if near else ""


def list_columns(names: Collection[str], most: int = 20) -> str:
    """At most `most` column names in a message; one that is long or empty, or has commas or outer blanks, is quoted."""
    shown = [
        name if name == name.strip() and "," not in name and 0 < len(name) <= 40 else shorten(name)
        for name in islice(names, most)
    ]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def is_missing(cell: Any) -> bool:
    """Whether a cell holds no value: empty, blank, NaN, a question mark, a dash, NA, N/A, null or None."""
    return is_empty(cell) or (isinstance(cell, str) and cell.strip().lower() in _MISSING)


def is_empty(cell: Any) -> bool:
    """Whether a cell is empty, blank, NaN or a question mark: not even the name of a category such as NA or None."""
    return cell is None or cell != cell or (isinstance(cell, str) and cell.strip().lower() in ("", "?", "nan"))


def numbers_in(text: str) -> list[float]:
    """The numbers in a text, in order."""
    return [float(number) for number in NUMBER.findall(text)]


def _cell(cells: Cells, name: str, option: str) -> Any:
    """The cell `name` of a row. Raises UserError if the row has none, which names the option for the column."""
    if name not in cells:
        first = list_columns([*map(str, cells)][:8]) or "nothing"
        more = " and more" if len(cells) > 8 else ""
        raise UserError(f"it has no {name!r}, only {first}{more} (the option --data.{option})")
    return cells[name]


def _word(cell: Any) -> str:
    """A cell as part of a text; "" where it is empty."""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, (list, dict)):
        return json.dumps(cell, ensure_ascii=False, default=str)
    return "" if cell is None or cell != cell else str(cell)  # NaN is an empty cell


def _literal(word: str) -> str:
    """A word as JSON: a number unchanged, an empty cell as null."""
    return word if _JSON_NUMBER.fullmatch(word) else _quote(word or None)


def _quote(word: str | None) -> str:
    return json.dumps(word, ensure_ascii=False)
