"""Rows of a table as (text, targets): a column that is a text, or many columns turned into one."""

import difflib
import json
import math
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from zoo.datamodules.sources.tables import BadRows, Cells, Table
from zoo.errors import UserError
from zoo.tokenizers.numerals import NUMBER
from zoo.training.batches import Row

RowFormat = Literal["text", "key_value", "json", "values"]

_JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?")


class Rows(NamedTuple):
    """Texts, their K targets (N, K) float64 (NaN where unknown), where each came from, and each one's group."""

    texts: list[str]
    targets: np.ndarray
    places: Sequence[str]
    groups: Sequence[str]

    def part(self, chosen: np.ndarray) -> "Rows":
        """The rows of the given indices."""
        texts, places, groups = ([column[i] for i in chosen] for column in (self.texts, self.places, self.groups))
        return Rows(texts, self.targets[chosen], places, groups)

    def cut(self, shares: dict[str, float], generator: torch.Generator) -> dict[str, "Rows"]:
        """These shares of the rows, drawn group by group, and all others as "train"; each in its old order."""
        groups, member = np.unique(self.groups, return_inverse=True)
        order = torch.randperm(len(groups), generator=generator).numpy()
        sizes = np.bincount(member, minlength=len(groups))[order]
        before = np.empty(len(groups))  # for each group, the share of all rows that was drawn before it
        before[order] = (sizes.cumsum() - sizes) / max(len(member), 1)
        ends = np.cumsum(list(shares.values()))
        part = np.searchsorted(ends, before[member], side="right")  # (N,)
        return {name: self.part(np.flatnonzero(part == i)) for i, name in enumerate([*shares, "train"])}


class Layout(NamedTuple):
    """Which columns make the text, and how, and which are the targets: numbers, or labels of these classes."""

    columns: list[str]
    targets: list[str]
    row_format: RowFormat
    group: str | None = None
    classes: dict[str, int] | None = None

    def read(self, tables: Sequence[Table], bad: BadRows, need_targets: bool = True) -> Rows:
        """All rows of the tables.

        Raises:
            ValueError: a table lacks a column, or a row is bad.
        """
        texts, targets, places, groups = [], [], [], []
        for table in tables:
            self._check(table, need_targets)
            for place, cells in table.rows:
                try:
                    text, numbers = self.text(cells), [self.target(cells, name, need_targets) for name in self.targets]
                    group = self._cell(cells, self.group) if self.group and need_targets else place
                except ValueError as error:
                    bad.refuse(place, str(error))
                    continue
                texts.append(text)
                targets.append(numbers or [math.nan])
                places.append(place)
                groups.append(str(group))
        if not texts:
            others = f", nor have the {len(tables) - 1} files beside it" if len(tables) > 1 else ""
            raise UserError(f"{tables[0].name} has no row that can be used{others}{bad.first()}")
        return Rows(texts, np.array(targets, dtype=np.float64).reshape(-1, len(self.targets) or 1), places, groups)

    def _check(self, table: Table, need_targets: bool) -> None:
        """Every row of a table lacks what its header lacks: that is no bad row, but a wrong setting."""
        options = {"text_column" if self.row_format == "text" else "columns": self.columns}
        if need_targets:
            target = "target_columns" if self.classes is None else "label_column"
            options |= {target: self.targets, "group_column": [self.group] if self.group else []}
        given = ", ".join(table.columns or table.rows[0][1] if table.rows else [])
        if need_targets and not self.targets:
            raise UserError(f"the numbers to be predicted are not named: set target_columns to some of {given}")
        for option, names in options.items():
            for name in names:
                if table.columns is not None and name not in table.columns:
                    near = difflib.get_close_matches(name, table.columns, n=1)
                    hint = f" (did you mean {near[0]!r}?)" if near else ""
                    raise UserError(f"{table.name} has no column {name!r}{hint}: set {option} to what it has, {given}")

    @staticmethod
    def _cell(cells: Cells, name: str) -> Any:
        if name not in cells:
            only = ", ".join(map(str, [*cells][:8])) or "nothing"
            raise UserError(f"it has no {name!r}, only {only}{' and more' if len(cells) > 8 else ''}")
        return cells[name]

    def target(self, cells: Cells, name: str, needed: bool = True) -> float:
        """The number in column `name`; where none is needed, NaN for a cell that is empty or missing.

        Raises:
            ValueError: there is none, or it is not finite, or is the label of no class.
        """
        cell = self._cell(cells, name) if needed else cells.get(name)
        if cell is None or (isinstance(cell, str) and not cell.strip()):
            if not needed:
                return math.nan
            raise UserError(f"its {'target' if self.classes is None else 'label'} {name!r} is empty")
        if self.classes is not None:
            label = written(cell)
            if label not in self.classes:
                raise UserError(f"its label {_shown(label)} is none of {', '.join(self.classes)}")
            return float(self.classes[label])
        try:
            if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):  # which Python would take for numbers
                raise ValueError
            value = float(cell)
        except (ValueError, TypeError, OverflowError):
            raise UserError(f"its target {name!r} is {_shown(cell)}, not a number") from None
        if not math.isfinite(value):
            raise UserError(f"its target {name!r} is {value}, not a finite number")
        return value

    def text(self, cells: Cells) -> str:
        """The row's text.

        Raises:
            ValueError: it is empty, or the text column holds something else.
        """
        if self.row_format == "text":
            cell = self._cell(cells, self.columns[0])
            if isinstance(cell, list | dict):
                raise UserError(f"its {self.columns[0]!r} is {_shown(cell)}, not a text")
            text = "" if cell is None else str(cell)
            if not text.strip():
                raise UserError(f"its text, {self.columns[0]!r}, is empty")
            return text
        words = {name: self._word(cells.get(name)) for name in self.columns}
        if not any(words.values()):
            raise UserError(f"all of {', '.join(self.columns)} are empty in it")
        if self.row_format == "values":
            return " ".join(word or "-" for word in words.values())
        if self.row_format == "json":
            return "{" + ", ".join(f"{_quoted(name)}: {_literal(word)}" for name, word in words.items()) + "}"
        return ", ".join(f"{name}: {word}" for name, word in words.items() if word)

    def _word(self, cell: Any) -> str:
        """A cell as it stands in the text; "" where it is empty."""
        if isinstance(cell, str):
            return cell.strip()
        if isinstance(cell, (list, dict)):
            return json.dumps(cell, ensure_ascii=False)
        return "" if cell is None or cell != cell else str(cell)  # a NaN is a gap


def _literal(word: str) -> str:
    """A word as JSON: a number as it stands, a gap as null."""
    return word if _JSON_NUMBER.fullmatch(word) else _quoted(word or None)


def _quoted(word: str | None) -> str:
    return json.dumps(word, ensure_ascii=False)


def written(cell: Any) -> str:
    """A label as it stands in a file: the 1.0 of a column of floats is a 1."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _shown(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 40 else f"{text[:37]}..."


def numbers_in(text: str) -> list[float]:
    """The numbers that stand in a text, in order: what a model of few inputs is given in its place."""
    return [float(number) for number in NUMBER.findall(text)]


class TextRows(Dataset):
    """Texts with their token ids, targets (N, K) and features (N, F), as `zoo.training.batches.Row`s.

    The ids lie end to end in one array: loader processes then share it, which they would not share lists.
    """

    def __init__(
        self, texts: list[str], ids: list[list[int]], targets: np.ndarray, features: np.ndarray | None = None
    ) -> None:
        self.texts, self.targets, self.features = texts, targets, features
        self.starts = np.cumsum([0, *map(len, ids)])  # (N + 1,)
        self._tokens = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=self.starts[-1])

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Row:
        tokens = self._tokens[self.starts[index] : self.starts[index + 1]].tolist()
        features = None if self.features is None else tuple(self.features[index].tolist())
        return Row(tokens, tuple(self.targets[index].tolist()), index, self.texts[index], features)
