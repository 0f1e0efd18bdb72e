"""A unit in which the squares of numbers stay within the range of float64, means of large numbers, and samples."""

import math

import numpy as np


def unit_of(*arrays: np.ndarray) -> float:
    """1; or, where the largest number is beyond 1e100 or below 1e-100, a power of two near it.

    Dividing by a power of two does not round, so results in this unit, multiplied by it, are those without it.
    """
    largest = max(float(np.abs(np.asarray(array)).max(initial=0)) for array in arrays)
    if not math.isfinite(largest) or largest == 0 or 1e-100 < largest < 1e100:
        return 1.0
    return 2.0 ** (math.frexp(largest)[1] - 1)


def mean_of(values: np.ndarray) -> float:
    """The mean of numbers (N,), also where their sum is beyond the range of float64."""
    unit = unit_of(values)
    return unit * float(np.mean(values / unit))


def evenly_spaced(n: int, most: int) -> np.ndarray:
    """(m,) the numbers from 0 to n - 1 in ascending order; of more than `most`, this many evenly spaced ones."""
    return np.unique(np.linspace(0, n - 1, most).round().astype(int)) if n else np.arange(0)
