"""Correctly rounded conversion between doubles and digits in any base, vectorised.

A double is an exact fraction, so the nearest number with a given number of digits is well defined; ties go to the even
one, as in IEEE 754 and in "%.3e". All results equal those of exact arithmetic. They are computed in doubles wherever an
error of two units in their last place does not matter (Clinger 1990, "How to read floating point numbers accurately"),
and with Python's integers in the few other places.
"""

import functools
import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LARGEST_EXPONENT = 1200  # in doubles 2^-1200 times any mantissa is 0, and 2^1200 is infinite


def significant(values: Floats, base: int, digits: int, lowest: int) -> tuple[Ints, Ints]:
    """Finite `values` >= 0 (N,) as mantissa and exponent (N,), value = mantissa base^(exponent - digits + 1).

    The mantissa has `digits` digits, fewer only where the exponent would be below `lowest`. The exponent of 0 is 0.
    """
    # The logarithm's estimate may be off by one in either direction: correct it by comparison with powers.
    exponent = _magnitude(values, base)
    exponent -= values < powers(base, exponent)
    exponent = np.maximum(exponent + (values >= powers(base, exponent + 1)), lowest)
    # Round to `digits` digits; where all are the largest digit, rounding carries into a new one.
    mantissa = nearest(values, base, digits - 1 - exponent)
    carried = mantissa == base**digits
    mantissa, exponent = np.where(carried, mantissa // base, mantissa), exponent + carried
    return mantissa, np.where(mantissa > 0, exponent, 0)


def nearest(values: Floats, base: int, power: Ints) -> Ints:
    """The integers (N,) nearest to values base^power, ties to even; |values base^power| must be below 2^53."""
    with np.errstate(over="ignore", invalid="ignore"):
        product = values * powers(base, power)
        rounded = np.rint(product)
        needs_integers = ~(0.5 - np.abs(product - rounded) > np.abs(product) * 2.0**-50)  # nearly a tie, or not finite
    # Doubles decide all cases but those near a tie, which Python's integers decide.
    result = np.where(needs_integers, 0, rounded).astype(np.int64)
    for i in np.flatnonzero(needs_integers):
        result[i] = _nearest(float(values[i]), base, int(power[i]))
    return result


def truncated(values: Floats, base: int, digits: int) -> tuple[Ints, Ints]:
    """Mantissa and exponent as upstream's IEEE tokenizer computes them, in doubles and truncated.

    Its errors are reproduced: 0.57 gives 5699, and where the product below rounds up to base^digits the number loses a
    power of the base.
    """
    # Correct the logarithm's estimate upwards only.
    exponent = _magnitude(values, base)
    exponent += (values >= powers(base, exponent + 1)) & (values > 0)
    low, high = int(exponent.min(initial=0)), int(exponent.max(initial=0))
    # Powers as Python computes them: below 1 rounded as in C, otherwise correctly rounded.
    factors = np.array([_float_power(base, digits - 1 - e) for e in range(low, high + 1)])
    mantissa = np.floor(values * factors[exponent - low]).astype(np.int64)
    # Bring the mantissa to `digits` digits: drop one where the product was too large, append zeros where too small.
    mantissa = np.where(mantissa >= base**digits, mantissa // base, mantissa)
    for _ in range(digits - 1):
        mantissa = np.where(mantissa < base ** (digits - 1), mantissa * base, mantissa)
    return mantissa, exponent


def product(mantissa: Ints, base: int, exponent: Ints) -> Floats:
    """mantissa base^exponent (...,), correctly rounded; infinite beyond the largest double. mantissa must be < 2^53."""
    # Beyond the clipped exponents the results are 0 or infinite in any case.
    shape, mantissa, exponent = (
        exponent.shape,
        mantissa.ravel(),
        np.clip(exponent.ravel(), -LARGEST_EXPONENT, LARGEST_EXPONENT),
    )
    power = powers(base, np.abs(exponent))
    with np.errstate(over="ignore", invalid="ignore"):  # 0 times infinity is recomputed below
        value = np.where(exponent < 0, mantissa / power, mantissa * power)
    # Where both operands are exact, the result above was rounded once and is correct; recompute the others.
    for i in np.flatnonzero(np.abs(exponent) > _last_exact_power(base)):
        value[i] = _product(int(mantissa[i]), base, int(exponent[i]))
    return value.reshape(shape)


def to_digits(numbers: Ints, base: int, digits: int) -> Ints:
    """The digits (..., digits) of numbers (...,), the most significant first."""
    return numbers[..., None] // base ** np.arange(digits - 1, -1, -1) % base


def from_digits(digits: Ints, base: int) -> Ints:
    """The numbers (...,) of digits (..., n)."""
    return digits @ base ** np.arange(digits.shape[-1] - 1, -1, -1)


def powers(base: int, exponents: Ints) -> Floats:
    """base^exponents, correctly rounded."""
    exponents = np.clip(exponents, -LARGEST_EXPONENT, LARGEST_EXPONENT)
    low, high = int(exponents.min(initial=0)), int(exponents.max(initial=0))
    return np.array([_product(1, base, e) for e in range(low, high + 1)])[exponents - low]


def _magnitude(values: Floats, base: int) -> Ints:
    """floor(log_base(values)), possibly off by one; 0 for 0."""
    return np.floor(np.log(np.where(values > 0, values, 1)) / np.log(base)).astype(np.int64)


@functools.cache
def _last_exact_power(base: int) -> int:
    exponent = 0
    while _product(1, base, exponent + 1) == base ** (exponent + 1):
        exponent += 1
    return exponent


def _nearest(value: float, base: int, power: int) -> int:
    # value base^power as a fraction of integers, rounded half to even.
    numerator, denominator = value.as_integer_ratio()
    numerator, denominator = numerator * base ** max(power, 0), denominator * base ** max(-power, 0)
    quotient, rest = divmod(numerator, denominator)
    return quotient + (2 * rest > denominator or (2 * rest == denominator and quotient % 2 == 1))


@functools.lru_cache(4096)
def _product(mantissa: int, base: int, exponent: int) -> float:
    try:  # Python rounds the quotient of two integers correctly
        return mantissa / base**-exponent if exponent < 0 else float(mantissa * base**exponent)
    except OverflowError:
        return math.inf


def _float_power(base: int, exponent: int) -> float:
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf
