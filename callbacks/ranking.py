"""Ranking scores: how well the order of predictions finds the best of N candidates."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zoo.errors import UserError, check_choice, check_number

Floats = NDArray[np.float64]
Best = Literal["min", "max"]


def ranked(values: Floats, best: Best) -> NDArray[np.int64]:
    """(N,) places of values (N,) from the best to the worst; equal values follow each other at random.

    Equal predictions would otherwise have the order of the data, which may be sorted.
    """
    shuffled = np.random.default_rng(0).permutation(len(values))
    return shuffled[np.argsort(_losses(values, best)[shuffled], kind="stable")]


def top_k_recall(predictions: Floats, targets: Floats, best: Best = "min") -> Floats:
    """For k = 1 ... N the share of the k best predictions (N,) whose targets (N,) are among the k best.

    A target that equals the k-th best counts as one of them.

    Args:
        predictions: (N,) predicted numbers.
        targets: (N,) true numbers.
        best: whether the smallest ("min") or the largest ("max") numbers are the best.

    Raises:
        UserError: the arrays are empty, a number is NaN, or the lengths differ.
    """
    _check(predictions, targets, best)
    losses = _losses(targets, best)
    # A candidate counts from the k on at which it has been tried and is among the k best.
    tried = np.empty(len(losses), dtype=np.int64)
    tried[ranked(predictions, best)] = np.arange(len(losses))
    counts_from = np.maximum(tried, np.searchsorted(np.sort(losses), losses))
    return np.bincount(counts_from, minlength=len(losses)).cumsum() / np.arange(1, len(losses) + 1)


def top_k_recall_at_random(targets: Floats, best: Best = "min") -> Floats:
    """For k = 1 ... N the expected `top_k_recall` of a random order: k / N where the targets (N,) are distinct."""
    _check(targets, targets, best)
    ordered = np.sort(_losses(targets, best))
    return np.searchsorted(ordered, ordered, side="right") / len(ordered)


def best_found(predictions: Floats, targets: Floats, best: Best = "min") -> Floats:
    """For k = 1 ... N the best target (N,) among the k best predictions (N,). Arguments as for `top_k_recall`."""
    _check(predictions, targets, best)
    accumulate = np.minimum.accumulate if best == "min" else np.maximum.accumulate
    return accumulate(targets[ranked(predictions, best)])


def best_found_at_random(targets: Floats, best: Best = "min", tried: Sequence[int] | None = None) -> Floats:
    """The expected best target among k of the targets (N,), drawn without replacement.

    Args:
        targets: (N,) true numbers.
        best: whether the smallest ("min") or the largest ("max") numbers are the best.
        tried: values of k, from 1 to N. Default: all of them.

    Returns:
        One number for each k.

    Raises:
        UserError: the arrays are empty, a number is NaN, or a k is out of range.
    """
    _check(targets, targets, best)
    n = len(targets)
    for k in (numbers := range(1, n + 1) if tried is None else tried):
        check_number("tried", k, f"from 1 to {n}", lambda k: 1 <= k <= n, whole=True)
    ordered = np.sort(targets) if best == "min" else np.sort(targets)[::-1]
    expected = []
    for k in numbers:
        # The j-th best is the best of k with probability C(n - j, k - 1) / C(n, k), computed by a recursion over j.
        factors = 1 - (k - 1) / (n - np.arange(1, n - k + 1))
        weights = k / n * np.concatenate([[1.0], np.cumprod(factors)])
        expected.append(weights @ ordered[: n - k + 1])
    return np.array(expected)


def _losses(values: Floats, best: Best) -> Floats:
    return values if best == "min" else -values.astype(np.float64)  # an unsigned integer has no negative


def _check(predictions: Floats, targets: Floats, best: Best) -> None:
    check_choice("best", best, ("min", "max"))
    if predictions.shape != targets.shape or predictions.ndim != 1 or not len(targets):
        raise UserError(f"a ranking needs (N,) predictions and targets, not {predictions.shape} and {targets.shape}")
    if np.isnan(predictions).any() or np.isnan(targets).any():
        raise UserError("a ranking needs numbers, but one of them is NaN")
