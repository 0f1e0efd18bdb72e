"""Columns of a table as numbers for a regression model, and new cells drawn from them."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.datamodules.row_text import is_empty, is_missing
from zoo.datamodules.text_scores import TextScores

_PLAIN = re.compile(r"[-+]?\d+(?:\.(\d*))?")  # a number without an exponent, and its decimals
_MOST_DECIMALS = 6
_LARGEST_LOG = float(np.log(np.finfo(np.float64).max)) - 1
_LARGEST = 1e30  # scikit-learn's trees read 32-bit numbers
_MOST_CATEGORIES = 32  # indicators of a column
SAME_TEXT = 0.25  # probability that a drawn text is not changed
RANDOM_WORDS = 0.2  # probability of each word of a changed text to be replaced by a random one


class NumberColumn:
    """A column whose cells are finite numbers or missing.

    Values over more than two decades are encoded by their logarithm; missing cells are NaN.

    Args:
        cells: (R,) the cells of all rows.
        jitter: standard deviation of the noise of drawn cells, in standard deviations of the encoded column.
    """

    def __init__(self, cells: Sequence[Any], jitter: float) -> None:
        self._cells, self._has_log_scale = cells, False
        known = self.encode([cell for cell in cells if not is_missing(cell)])
        self._has_log_scale = bool(known.min() > 0 and known.max() > 100 * known.min())
        self._encoded = self.encode(cells)[:, 0]  # (R,)
        # A column of one or two values is a constant or a switch: nothing is between its values.
        self._noise = jitter * float(np.nanstd(self._encoded)) if len(np.unique(known)) > 2 else 0.0
        self._decimals = count_decimals([cell for cell in cells if not is_missing(cell)])

    def encode(self, cells: Sequence[Any]) -> np.ndarray:
        """(N, 1) the cells as numbers, NaN for a cell that is not a number."""
        values = np.array([float(cell) if is_number(cell) else math.nan for cell in cells])
        if self._has_log_scale:
            values = np.log(np.maximum(values, np.finfo(np.float64).tiny))
        return np.clip(values, -_LARGEST, _LARGEST)[:, None]

    def differ(self, rows: np.ndarray) -> np.ndarray:
        """(n, n) whether numbers of the rows `rows` (n,) are farther apart than the noise, or only one is missing."""
        encoded = self._encoded[rows]
        is_missing = np.isnan(encoded)
        distance = np.abs(encoded[:, None] - encoded)
        return (distance > self._noise) | (is_missing[:, None] != is_missing)

    def draw(self, source: np.ndarray, random: np.random.Generator) -> list[Any]:
        """(N,) the cells of the rows `source` (N,), with noise on their numbers."""
        if not self._noise:
            return [self._cells[i] for i in source]
        moved = self._encoded[source] + random.normal(0.0, self._noise, len(source))
        values = (np.exp(np.minimum(moved, _LARGEST_LOG)) if self._has_log_scale else moved).tolist()
        return [self._cells[i] if math.isnan(x) else self._write(x) for i, x in zip(source, values, strict=True)]

    def _write(self, value: float) -> str:
        """A number with as many decimals as the column's own, or with six digits where these have exponents."""
        text = f"{value:.6g}" if self._decimals is None else f"{value:.{self._decimals}f}"
        return text.removeprefix("-") if float(text) == 0 else text


class CategoryColumn:
    """A column of words, encoded as indicators of the most frequent ones; a missing cell is a category as well.

    Args:
        cells: (R,) the cells of all rows.
    """

    def __init__(self, cells: Sequence[Any]) -> None:
        self._cells = cells
        names, counts = np.unique([_word(cell) for cell in cells], return_counts=True)
        self._frequent = names[np.argsort(-counts, kind="stable")[:_MOST_CATEGORIES]]

    def encode(self, cells: Sequence[Any]) -> np.ndarray:
        """(N, categories) 1 where a cell is of the category."""
        return (np.array([_word(cell) for cell in cells])[:, None] == self._frequent).astype(np.float64)

    def differ(self, rows: np.ndarray) -> np.ndarray:
        """(n, n) whether the cells of the rows `rows` (n,) differ."""
        return _differ(self._cells, rows)

    def draw(self, source: np.ndarray, random: np.random.Generator) -> list[Any]:
        """(N,) the cells of the rows `source` (N,)."""
        return [self._cells[i] for i in source]


class TextColumn:
    """A column of texts, most of them different. A regression model reads their scores (`TextScores`).

    Args:
        cells: (R,) the cells of all rows.
    """

    def __init__(self, cells: Sequence[Any]) -> None:
        self._cells = cells
        self._words = [_word(cell).split() for cell in cells]
        self._vocabulary = sorted({word for words in self._words for word in words})
        self._scores: TextScores | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no cell has a value."""
        return not self._vocabulary

    def fit(self, targets: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
        """Fit the scores to targets (R, K) of about unit scale; returns (R, K) scores by models of other rows."""
        if self.is_empty:
            return np.empty((len(targets), 0))
        self._scores = TextScores([_word(cell) for cell in self._cells], targets, groups, seed)
        return self._scores.left_out

    def encode(self, cells: Sequence[Any]) -> np.ndarray:
        """(N, K) the scores of the cells; (N, 0) before they are fitted."""
        return self._scores.predict([_word(cell) for cell in cells]) if self._scores else np.empty((len(cells), 0))

    def differ(self, rows: np.ndarray) -> np.ndarray:
        """(n, n) whether the cells of the rows `rows` (n,) differ."""
        return _differ(self._cells, rows)

    def draw(self, source: np.ndarray, random: np.random.Generator) -> list[Any]:
        """(N,) the cells of the rows `source` (N,), of which three in four are changed.

        A part of the text is replaced by a part of another one, and some words by words of the whole column, rare ones
        as often as frequent ones.
        """
        cells = []
        others = random.integers(len(self._cells), size=len(source))
        for i, j in zip(source.tolist(), others.tolist(), strict=True):
            words, other = self._words[i], self._words[j]
            if not words or random.random() < SAME_TEXT:
                cells.append(self._cells[i])
                continue
            # The first words of one text and the last words of the other, in this order or the reverse.
            parts = words[: random.integers(len(words) + 1)], other[random.integers(len(other) + 1) :]
            new = [*parts[0], *parts[1]] if random.random() < 0.5 else [*parts[1], *parts[0]]
            is_new = random.random(len(new)) < RANDOM_WORDS
            drawn = random.integers(len(self._vocabulary), size=len(new))
            new = [self._vocabulary[k] if n else w for w, n, k in zip(new, is_new, drawn, strict=True)]
            cells.append(" ".join(new or words))
        return cells


def read_column(cells: Sequence[Any], jitter: float) -> NumberColumn | CategoryColumn | TextColumn:
    """The column of a table with the given cells (R,); drawn numbers get noise, `jitter` times their spread."""
    known = [cell for cell in cells if not is_missing(cell)]
    if known and all(map(is_number, known)):
        return NumberColumn(cells, jitter)
    known = [cell for cell in cells if not is_empty(cell)]
    is_category = known and len({_word(cell) for cell in known}) <= len(known) / 2
    return CategoryColumn(cells) if is_category else TextColumn(cells)


def is_number(cell: Any) -> bool:
    """Whether a cell is a finite number, or a text that is one."""
    if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):  # Python accepts True and 1_000
        return False
    try:
        return math.isfinite(float(cell))
    except (ValueError, TypeError, OverflowError):
        return False


def count_decimals(cells: Sequence[Any]) -> int | None:
    """The largest number of decimals of the numbers; None if one has an exponent, or more than six decimals."""
    matches = [_PLAIN.fullmatch(str(cell).strip()) for cell in cells]
    decimals = max(len(match[1] or "") if match else _MOST_DECIMALS + 1 for match in matches)
    return decimals if decimals <= _MOST_DECIMALS else None


def _differ(cells: Sequence[Any], rows: np.ndarray) -> np.ndarray:
    words = np.array([_word(cells[i]) for i in rows])
    return words[:, None] != words


def _word(cell: Any) -> str:
    return "" if is_empty(cell) else str(cell).strip()
