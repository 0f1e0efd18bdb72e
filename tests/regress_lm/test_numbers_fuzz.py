"""Number formats and examples with arguments of any type: each works to its stated precision or is refused by name."""

import math
import re
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zoo.errors import UserError
from zoo.regress_lm import Example, ExampleInput
from zoo.regress_lm.number_formats import number_tokenizer
from zoo.regress_lm.number_inputs import as_numbers
from zoo.regress_lm.number_tokenizers import IEEEFloatTokenizer, NormalizedTokenizer, P10Tokenizer, largest_finite

ANY = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 60), st.sampled_from([10**9, 10**400, np.int64(3), np.bool_(True)]),
    st.floats(), st.text(max_size=4), st.just([3]), st.just({}),
)  # fmt: skip
SIZES = st.one_of(st.none(), st.integers(1, 5), ANY)
NUMBERS = st.one_of(
    st.floats(), st.floats(0, 1),
    st.sampled_from([1e999, 5e-324, 1.7976931348623157e308, -9.9995e307, 0.99995, 99995, -0.0]),
)  # fmt: skip


def result_or_refusal(function, *arguments):
    """(result, None), or (None, message of the UserError)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*arguments), None
        except UserError as error:
            return None, str(error)


def half_a_unit(tokenizer, value):
    """Largest difference of a number and its nearest tokens, as an exact fraction."""
    inner, size = getattr(tokenizer, "inner", tokenizer), abs(Fraction(value))
    if isinstance(inner, NormalizedTokenizer):
        return Fraction(1, 2 * 10**inner.length)
    relative = size / (2 * 10 ** (inner.digits - 1))
    if isinstance(inner, IEEEFloatTokenizer):  # numbers below the smallest exponent lose digits
        return max(relative, Fraction(10) ** (1 - inner.digits - min(inner.top, 400)) / 2)
    assert isinstance(inner, P10Tokenizer)  # smaller numbers become the smallest number or 0
    return max(relative, Fraction(10) ** (inner.digits - 1 - inner.exponent) / 2)


@settings(max_examples=500, derandomize=True, deadline=None)
@example("ieee", None, 4, False, 1.7976931348623157e308)
@example("p10", 15, 400, True, -1.7976931348623157e308)
@example("ieee", 10**9, 10**400, False, 1.0)
@given(st.sampled_from(["ieee", "p10", "normalized", "roman", None, []]), SIZES, SIZES, ANY | st.booleans(), NUMBERS)
def test_number_tokenizer_round_trips_or_is_refused_by_name(kind, digits, exponent, special_values, value):
    tokenizer, refusal = result_or_refusal(number_tokenizer, kind, digits, exponent, special_values)
    if tokenizer is None:
        assert re.search("number_format|digits|exponent|special_values", refusal), refusal
        return
    tokens, refusal = result_or_refusal(tokenizer.to_tokens, value)
    if tokens is None:
        assert "has no tokens as a number" in refusal
        assert not math.isfinite(value)
        assert special_values is False
        return
    is_clamped = bool(tokenizer.encode_clamped(value)[1])
    back = tokenizer.from_tokens(tokens)
    if not math.isfinite(value):
        assert back == value or (math.isnan(back) and math.isnan(value))
    elif is_clamped:
        assert back in tokenizer.limits
    else:
        # A double's own rounding comes on top of that of the digits.
        slack = abs(Fraction(value)) * Fraction(1, 2**52) + Fraction(5e-324)
        assert abs(Fraction(back) - Fraction(value)) <= half_a_unit(tokenizer, value) + slack


@pytest.mark.parametrize(("base", "digits"), [(10, 1), (10, 4), (10, 15), (2, 52), (2, 1), (7, 3), (1024, 2)])
def test_largest_finite_number_is_finite_and_the_next_is_not(base, digits):
    mantissa, exponent = largest_finite(base, digits, 5000)
    value = Fraction(mantissa) * Fraction(base) ** (exponent - digits + 1)
    following = value + Fraction(base) ** (exponent - digits + 1)
    assert math.isfinite(float(value))
    with pytest.raises(OverflowError):
        float(following)
    assert largest_finite(base, digits, 3) == (base**digits - 1, 3)


# ---- examples

ITEMS = st.one_of(
    st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=3), st.just(1j), st.just(10**400),
    st.builds(np.float32, st.floats(width=32)), st.just(Fraction(1, 3)),
)  # fmt: skip


@settings(max_examples=300, derandomize=True, deadline=None)
@example("x", "12")
@example("x", [True, 2.0])
@example("\ud800", 1.0)
@given(st.one_of(st.text(max_size=3), ANY), st.one_of(ITEMS, st.lists(st.one_of(ITEMS, st.lists(ITEMS)), max_size=3)))
def test_example_holds_numbers_or_is_refused_by_name(x, y):
    def is_number(value):
        return not isinstance(value, bool | np.bool_) and isinstance(value, int | float | np.number | Fraction)

    items = y if isinstance(y, list) else [y]
    is_valid = bool(items) and all(
        is_number(item) and not (isinstance(item, int) and item == 10**400) for item in items
    )
    is_text = isinstance(x, str) and x.isprintable() | x.isascii() | (x.encode("utf-8", "ignore").decode() == x)
    made, refusal = result_or_refusal(Example, x, y)
    if made is None:
        assert re.match("[xy] of an example ", refusal)
        assert "\n" not in refusal
        assert not (is_valid and is_text)
        return
    assert is_valid
    np.testing.assert_array_equal(made.numbers(), np.array([float(item) for item in items]))


def test_numbers_of_other_types_are_read():
    pandas = pytest.importorskip("pandas")
    for y in (
        np.array([1, 2]), np.array([1, 2], dtype=np.float16), torch.tensor([1, 2]), (1.0, 2), pandas.Series([1, 2]),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True), range(1, 3),
    ):  # fmt: skip
        assert Example("x", y).numbers() == (1.0, 2.0)
    for y in (3, 3.0, np.float32(3), np.int8(3), torch.tensor(3), np.array(3.0)):
        assert Example("x", y).numbers() == (3.0,)
    assert as_numbers("y", [[1, 2], [3, 4]]).shape == (2, 2)
    for y in (
        (v for v in (1, 2)),
        {1.0: 2.0},
        {1.0},
        [[1, 2]],
        [],
        None,
        "12",
        b"1",
        np.array(["1"]),
        np.array([True]),
    ):
        with pytest.raises(UserError, match="y of an example must be a number or a list of"):
            Example("x", y)
    for x in (1, None, b"x", ["x"], "\udc80"):
        with pytest.raises(UserError, match="x of an example must be"):
            ExampleInput(x)
