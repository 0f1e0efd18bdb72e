"""Statistics of texts: numbers, words that distinguish texts, digits that keep numbers distinct."""

import numpy as np
import pytest

from zoo.training.text_statistics import text_statistics


def statistics(texts):
    return text_statistics(texts, np.zeros((len(texts), 1)))


def test_names_of_columns_do_not_distinguish_texts():
    s = statistics([f"lr: {i / 10}, layers: {i % 3}, kind: {'ab'[i % 2]}" for i in range(1, 101)])
    assert (s.n_rows, s.numbers, s.content_words, s.rare_share) == (100, 2, 1, 0)
    assert (s.words, s.distinct_numbers, s.columns) == (6, 100, 0)


def test_rare_words():
    s = statistics([f"word{chr(97 + i)} often" if i % 2 else "word often" for i in range(20)])
    assert s.content_words == 1
    assert s.rare_share == 0.5
    assert s.numbers == 0
    assert s.spread == 0


@pytest.mark.parametrize(
    ("numbers", "digits"),
    [
        (range(1, 100), 2),  # two digits are enough for whole numbers below 100
        (range(1000, 1100), 4),  # years
        (np.linspace(100, 250, 50), 2),
        (np.linspace(300, 340, 41), 3),
        ([1_700_000_000 + 61 * i for i in range(60)], 9),  # tens of seconds
        ([1 + 1e-12 * i for i in range(60)], 13),
        ([5], 2),
        ([0, 1e300], 2),
    ],
)
def test_digits_keep_quantiles_of_numbers_distinct(numbers, digits):
    assert statistics([f"x {number}" for number in numbers]).digits == digits


def test_numbers_in_a_single_text():
    assert statistics([f"x {i}" for i in (11, 12, 13, 13)]).single_numbers == 0.5
    assert statistics(["x 1300", "x 1301", "x 7"]).single_numbers == 1  # four digits
    assert statistics(["no number"] * 3).single_numbers == 0


def test_spread_is_relative_and_ignores_constant_columns():
    assert statistics(["a 1 7", "a 3 7"]).spread == pytest.approx(0.5)
    assert statistics(["1 1e9 1", "3 3e9 1"]).spread == pytest.approx(0.5)


def test_rounding_must_not_erase_a_column():
    def least_digits(*columns):
        texts = [", ".join(f"c{i}: {value}" for i, value in enumerate(row)) for row in zip(*columns, strict=True)]
        return text_statistics(texts, np.arange(float(len(texts)))[:, None]).least_digits

    prices = [round(1.05**i, 2) for i in range(182)]
    assert least_digits(prices) == 2
    # The years 1930 to 2020 are 1.9e3 and 2.0e3 in two digits; two years are one number.
    assert least_digits([1930 + i % 91 for i in range(182)], prices) == 4
    assert least_digits([(1978, 1981)[i % 2] for i in range(182)], prices) == 4
    # The ends of a range that only the last digits distinguish.
    assert least_digits([100_000 + i for i in range(182)], prices) == 6


def test_years_of_dates_need_no_digits():
    texts = [f"built: {1970 + i % 12}-01-01, weight: {100 * i + 1000}" for i in range(60)]
    assert (statistics(texts).numbers, statistics(texts).least_digits) == (1, 2)
