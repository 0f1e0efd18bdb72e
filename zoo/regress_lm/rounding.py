"""Doubles to digits in any base and back, correctly rounded, many at a time.

A double is an exact fraction, so the nearest number of so many digits is well defined; ties go to the even one, as in
IEEE 754 and in "%.3e". The answers below are those of exact arithmetic. They are found in doubles wherever an error of
two units in their last place cannot matter (Clinger 1990, "How to read floating point numbers accurately"), and by
Python's integers in the few places where it can.
"""

import functools
import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BEYOND = 1200  # 2^-1200 times any mantissa is 0 in doubles, and 2^1200 infinite


def significant(values: Floats, base: int, digits: int, lowest: int) -> tuple[Ints, Ints]:
    """Finite `values` >= 0 (N,) as mantissa and exponent (N,), value = mantissa base^(exponent - digits + 1).

    The mantissa has `digits` digits: fewer only where the exponent would be under `lowest`. Zero's exponent is 0.
    """
    exponent = _magnitude(values, base)
    exponent -= values < powers(base, exponent)
    exponent = np.maximum(exponent + (values >= powers(base, exponent + 1)), lowest)
    mantissa = nearest(values, base, digits - 1 - exponent)
    carried = mantissa == base**digits
    mantissa, exponent = np.where(carried, mantissa // base, mantissa), exponent + carried
    return mantissa, np.where(mantissa > 0, exponent, 0)


def nearest(values: Floats, base: int, power: Ints) -> Ints:
    """The integers (N,) nearest to values base^power, half to even; |values base^power| < 2^53."""
    with np.errstate(over="ignore", invalid="ignore"):
        product = values * powers(base, power)
        whole = np.rint(product)
        doubtful = ~(0.5 - np.abs(product - whole) > np.abs(product) * 2.0**-50)  # nearly a tie, or no number
    whole = np.where(doubtful, 0, whole).astype(np.int64)
    for i in np.flatnonzero(doubtful):
        whole[i] = _nearest(float(values[i]), base, int(power[i]))
    return whole


def truncated(values: Floats, base: int, digits: int) -> tuple[Ints, Ints]:
    """Mantissa and exponent as upstream's IEEE tokenizer has them: its arithmetic in doubles, cut and not rounded.

    Its errors are kept: 0.57 gives 5699, and where the product below rounds up to base^digits the number loses a
    power of the base.
    """
    exponent = _magnitude(values, base)
    exponent += (values >= powers(base, exponent + 1)) & (values > 0)
    low, high = int(exponent.min(initial=0)), int(exponent.max(initial=0))
    # Python's powers, which round those below 1 as C does and the others correctly.
    factors = np.array([_float_power(base, digits - 1 - e) for e in range(low, high + 1)])
    mantissa = np.floor(values * factors[exponent - low]).astype(np.int64)
    mantissa = np.where(mantissa >= base**digits, mantissa // base, mantissa)
    for _ in range(digits - 1):
        mantissa = np.where(mantissa < base ** (digits - 1), mantissa * base, mantissa)
    return mantissa, exponent


def product(mantissa: Ints, base: int, exponent: Ints) -> Floats:
    """mantissa base^exponent (...,), correctly rounded, infinite beyond the largest double; mantissa < 2^53."""
    shape, mantissa, exponent = exponent.shape, mantissa.ravel(), np.clip(exponent.ravel(), -BEYOND, BEYOND)
    power = powers(base, np.abs(exponent))
    with np.errstate(over="ignore"):
        value = np.where(exponent < 0, mantissa / power, mantissa * power)
    # Both operands being exact, the result is rounded once.
    for i in np.flatnonzero(np.abs(exponent) > _last_exact_power(base)):
        value[i] = _product(int(mantissa[i]), base, int(exponent[i]))
    return value.reshape(shape)


def spelt(numbers: Ints, base: int, digits: int) -> Ints:
    """The digits (..., digits) of numbers (...,), the most significant first."""
    return numbers[..., None] // base ** np.arange(digits - 1, -1, -1) % base


def read(digits: Ints, base: int) -> Ints:
    """The numbers (...,) of digits (..., n)."""
    return digits @ base ** np.arange(digits.shape[-1] - 1, -1, -1)


def powers(base: int, exponents: Ints) -> Floats:
    """base^exponents, correctly rounded."""
    exponents = np.clip(exponents, -BEYOND, BEYOND)
    low, high = int(exponents.min(initial=0)), int(exponents.max(initial=0))
    return np.array([_product(1, base, e) for e in range(low, high + 1)])[exponents - low]


def _magnitude(values: Floats, base: int) -> Ints:
    """floor(log_base(values)), at times off by one; 0 for 0."""
    return np.floor(np.log(np.where(values > 0, values, 1)) / np.log(base)).astype(np.int64)


@functools.cache
def _last_exact_power(base: int) -> int:
    exponent = 0
    while _product(1, base, exponent + 1) == base ** (exponent + 1):
        exponent += 1
    return exponent


def _nearest(value: float, base: int, power: int) -> int:
    above, below = value.as_integer_ratio()
    above, below = above * base ** max(power, 0), below * base ** max(-power, 0)
    whole, rest = divmod(above, below)
    return whole + (2 * rest > below or (2 * rest == below and whole % 2 == 1))


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
