"""Jitter: noise on the numbers of a text that is small compared with the differences between rows."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from random import Random

import numpy as np

from zoo.tokenizers.numerals import DATE, NUMBER
from zoo.training.number_range import evenly_spaced

MOST_TEXTS = 5000  # of more texts, this many evenly spaced ones are used
LEAST_NUMBERS = 3  # of a column, to tell how far they differ
SHARE = 0.3  # largest standard deviation of the noise on a column, in standard deviations of the column
# Times of a day, days of other orders than `DATE`, and times of a date are not quantities either.
_CLOCK = r"(?<![\w.:])(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?(?![\w:])"
_DAY = r"(?<![\w./-])(?:0?[1-9]|[12]\d|3[01])(?P<slash>[-/])(?:0?[1-9]|[12]\d|3[01])(?P=slash)\d{4}(?![\w/-])"
_TIME = r"(?:T\d{2}:?\d{2}(?::?\d{2}(?:\.\d+)?)?(?:Z|[-+]\d{2}:?\d{2})?(?!\w))?"
DATE_OR_NUMBER = re.compile(f"(?P<date>{DATE.pattern}{_TIME}|{_DAY}|{_CLOCK})|{NUMBER.pattern}")
_SEPARATOR = re.compile(r"[,{\[]")


class Jitter:
    """Multiplies each number of a text by exp(N(0, jitter^2)), so that similar inputs have similar outputs.

    Dates and times stay as they are. In a column that deviates by less than `jitter` of its magnitude, as years do, the
    noise is at most 0.3 of the column's standard deviation, and numbers keep their decimals; a constant stays as it is.
    A column is the numbers with the same word before them, or, in texts without such words, at the same position.

    Args:
        jitter: standard deviation of the noise, relative to the number; positive.
        texts: from which the columns are known; without them all numbers get the same noise.
    """

    def __init__(self, jitter: float, texts: Sequence[str]) -> None:
        self._jitter, self._narrow = jitter, {}
        if not texts:
            return
        chosen = evenly_spaced(len(texts), MOST_TEXTS)
        columns = defaultdict(list)
        for i in chosen:
            for column, number in _numbers(texts[i]):
                columns[column].append(float(number[0]))
        for column, numbers in columns.items():
            values = np.array(numbers)
            values = values[np.isfinite(values)]
            if len(values) >= LEAST_NUMBERS and (spread := _spread(values)) < jitter:
                self._narrow[column] = SHARE * spread

    def __call__(self, text: str, random: Random) -> str:
        """The text with noise on its numbers."""
        parts, end = [], 0
        for column, number in _numbers(text):
            parts += [text[end : number.start()], self._multiply(number[0], self._narrow.get(column), random)]
            end = number.end()
        return "".join([*parts, text[end:]])

    def _multiply(self, number: str, narrow: float | None, random: Random) -> str:
        """The number with noise; one that is beyond the range of floats stays as it is."""
        noise = random.gauss(0, self._jitter)
        if narrow == 0:
            return number
        try:
            product = float(number) * math.exp(noise if narrow is None else noise * narrow / self._jitter)
        except OverflowError:
            return number
        if not math.isfinite(product):
            return number
        if narrow is None:
            return f"{product:.6g}"
        if "e" in number.lower():
            return f"{product:.12g}"
        return f"{product:.{len(number.partition('.')[2])}f}"


def _numbers(text: str) -> Iterator[tuple[tuple[str, int], re.Match[str]]]:
    """The numbers of a text that are not parts of dates, each with its column."""
    end, position, counts = 0, 0, Counter[str]()
    for found in DATE_OR_NUMBER.finditer(text):
        if found["date"] is None:
            label = _SEPARATOR.split(text[end : found.start()])[-1].strip()
            has_word = any(map(str.isalpha, label))
            # A list has several numbers after one word.
            key = label if has_word else ""
            counts[key] += 1
            yield (key, counts[key] if has_word else position), found
        end, position = found.end(), position + 1


def _spread(values: np.ndarray) -> float:
    """The standard deviation of numbers divided by their mean magnitude; 0 of constants."""
    largest = np.abs(values).max()
    if not largest or (values == values[0]).all():
        return 0.0
    return float((values / largest).std() / np.abs(values / largest).mean())
