"""Statistics of texts with numbers to predict, from which default settings are derived."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zoo.tokenizers.numerals import DATE, NUMBER, rounded
from zoo.training.number_range import evenly_spaced

_WORD = re.compile(r"[^\W\d_][^\s,:;\"{}]*")
MOST_TEXTS = 5000  # of more texts, this many evenly spaced ones are used
QUANTILES = 20  # quantiles of each column of numbers; rounding must keep most of them distinct
TEMPLATE = 0.9  # a word in at least this share of the texts is part of their form, as the name of a column is
MOST_DIGITS = 17  # that distinguish all 64-bit floats
ENOUGH = 0.8  # share of numbers that must stay distinct
LOST = 0.25  # a column that keeps at most this share of its quantiles has lost most of its values
FEW_NUMBERS = 50  # a column with at most this many different numbers holds years or categories
RARE = 2  # a word in at most this many texts is rare


class TextStatistics(NamedTuple):
    """Statistics of N texts and their targets.

    Args:
        n_rows: N.
        targets: (N, K) the numbers to predict.
        characters: mean length of a text.
        words: mean number of words of a text, separated by white space.
        numbers: mean number of numbers in a text.
        content_words: mean number of words in a text that are not in almost all texts, numbers excluded.
        rare_share: share of these words that are in at most two texts.
        digits: significant digits, from 2 to 17, at which most rounded numbers of each column stay distinct.
        spread: median over the columns of numbers of their standard deviation divided by their mean magnitude.
        distinct_numbers: largest number of distinct values of a column of numbers.
        columns: number of columns of a table that are rendered as a text; 0 where texts are given as they are.
        least_digits: significant digits, from 2 to 17, at which no column of numbers loses most of its values.
        single_numbers: share of the numbers, rounded to as many digits as the words of a tokenizer have, that are in a
            single text; about that share of the numbers of new texts is in none of these texts.
    """

    n_rows: int
    targets: np.ndarray
    characters: float
    words: float
    numbers: float
    content_words: float
    rare_share: float
    digits: int
    spread: float
    distinct_numbers: int = 0
    columns: int = 0
    least_digits: int = 2
    single_numbers: float = 0.0


def text_statistics(texts: Sequence[str], targets: np.ndarray, n_columns: int = 0) -> TextStatistics:
    """The statistics of N texts with targets (N, K), N at least 1, and of their number of columns."""
    chosen = evenly_spaced(len(texts), MOST_TEXTS)
    sample = [texts[i] for i in chosen]
    without_dates = [DATE.sub(" ", text) for text in sample]  # which are not rounded
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in without_dates]
    # Words, without those that almost all texts share.
    words = [{word.lower() for word in _WORD.findall(NUMBER.sub(" ", text))} for text in without_dates]
    counts = Counter(word for of_text in words for word in of_text)
    content = {word: n for word, n in counts.items() if n < TEMPLATE * len(sample)}
    occurrences = sum(content.values())
    columns = _columns(numbers)
    digits = max([2, *map(_digits, columns)])
    least_digits = max([2, *(_digits(column) for column in columns if loses_most(column, 2))])
    distinct = max((len(np.unique(column)) for column in columns), default=0)
    return TextStatistics(
        n_rows=len(texts),
        targets=targets,
        characters=float(np.mean([len(text) for text in sample])),
        words=float(np.mean([len(text.split()) for text in sample])),
        numbers=float(np.mean([len(row) for row in numbers])),
        content_words=occurrences / len(sample),
        rare_share=sum(n for n in content.values() if n <= RARE) / max(occurrences, 1),
        digits=digits,
        spread=float(np.median([_spread(column) for column in columns])) if columns else 0.0,
        distinct_numbers=distinct,
        columns=n_columns,
        least_digits=least_digits,
        single_numbers=_single_numbers(numbers, digits if distinct <= FEW_NUMBERS else least_digits),
    )


def _single_numbers(numbers: list[list[float]], digits: int) -> float:
    """The share of numbers, over all texts, whose rounded digits are in one text only."""
    words = Counter(word for row in numbers for word in {f"{number:.{digits - 1}e}".split("e")[0] for number in row})
    return sum(n for n in words.values() if n == 1) / max(sum(words.values()), 1)


def _columns(numbers: list[list[float]]) -> list[np.ndarray]:
    """The numbers at each position, of the texts that have the usual number of numbers; constant ones are left out."""
    [(usual, _)] = Counter(map(len, numbers)).most_common(1)
    table = np.array([row for row in numbers if len(row) == usual], dtype=np.float64)
    columns = [column[np.isfinite(column)] for column in table.T]
    return [column for column in columns if len(np.unique(column)) > 1]


def loses_most(column: np.ndarray, digits: int) -> bool:
    """Whether a column of numbers, as of years, keeps a single value or few of its quantiles when it is rounded."""
    n_values = min(len(np.unique(column)), QUANTILES)
    return n_values > 1 and share_kept(column, digits) <= max(LOST, 1 / n_values)


def share_kept(column: np.ndarray, digits: int) -> float:
    """The share of quantiles of the column's distinct values that stay distinct when they are rounded.

    Args:
        column: (N,) numbers, N at least 1.
        digits: significant digits.
    """
    values = np.unique(column)
    quantiles = values[evenly_spaced(len(values), QUANTILES)]
    return len({rounded(f"{value!r}", digits) for value in quantiles.tolist()}) / len(quantiles)


def _digits(column: np.ndarray) -> int:
    """The fewest digits, from 2 to 17, at which most numbers of the column stay distinct.

    Up to four digits, quantiles of the distinct values have to stay distinct. A column that needs more, as of
    timestamps, differs only in its last digits: then the values themselves have to.
    """
    few = next((digits for digits in (2, 3, 4) if share_kept(column, digits) >= ENOUGH), None)
    if few is not None:
        return few
    values = np.unique(column).tolist()
    return next(
        digits
        for digits in range(5, MOST_DIGITS + 1)
        if len({f"{value:.{digits - 1}e}" for value in values}) >= ENOUGH * len(values)
    )


def _spread(column: np.ndarray) -> float:
    largest = np.abs(column).max()  # at least one value differs from 0
    return float((column / largest).std() / np.abs(column / largest).mean())
