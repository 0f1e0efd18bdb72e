"""Calibration of predicted distributions on validation rows: temperatures of tokens, and split-conformal quantiles.

Temperatures (Guo et al. 2017, https://arxiv.org/abs/1706.04599) change the distribution itself: one for each token of
a number, fitted by the log-likelihood. Conformal offsets move the quantiles of the samples, not the point estimates: at
every level q the residuals of the validation targets, (y - quantile) / spread of the samples, have a q-quantile, by
which the quantile is moved (conformalized quantile regression, Romano et al. 2019, https://arxiv.org/abs/1905.03222,
one-sided for each level and scaled by the spread). For exchangeable rows a new target is inside the interval of two
moved quantiles with a probability of about their difference c. The share of m test rows inside it has a standard
deviation of about sqrt(c (1 - c) (1 / n + 1 / m)) for n validation rows, .024 at c = .9 with 300 rows each. This is
approximate where the same rows have selected the weights and the temperatures, and where rows come in groups. Neither
calibration holds on rows of another distribution.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.regress_lm.automaton import ANY
from zoo.regress_lm.estimates import quantiles

TEMPERATURES = torch.logspace(math.log2(0.25), math.log2(8), 61, base=2, dtype=torch.float64)
"""Candidates of a temperature, (G,)."""

LEVELS = tuple(np.linspace(0.05, 0.95, 19).round(2).tolist())
"""Quantile levels with conformal offsets."""

MOST_ROWS = 2000
"""Validation rows, about, from which offsets are fitted at most: the deviation of a share of .9 is then .007."""

LEAST_ROWS = 39
"""Fewest validation rows for offsets. The offset at 5% is then the second smallest residual, not the smallest."""


class Offsets(NamedTuple):
    """Conformal offsets of K objectives."""

    values: list[list[float]]  # (K, levels), in units of the spread
    floor: list[float]  # (K,) added to the spread of a row's samples


def fit_temperatures(log_probs: Tensor) -> list[float]:
    """The temperature of each of a number's tokens, (T,), with the highest likelihood.

    A log-normal prior with median 1 and deviation .5 keeps temperatures of few rows near 1.

    Args:
        log_probs: (G, T) sums over the validation rows at `TEMPERATURES`.
    """
    prior = TEMPERATURES.log().square() / (2 * 0.5**2)  # (G,)
    score = log_probs.cpu().double() - prior[:, None]
    # A certain token, for instance the only sign, has the same likelihood at all temperatures: the prior decides.
    return TEMPERATURES[score.argmax(0)].tolist() if score.isfinite().all() else [1.0] * score.shape[1]


def fit_offsets(samples_quantiles: np.ndarray, spread: np.ndarray, targets: np.ndarray) -> Offsets | None:
    """Conformal offsets from validation rows; None if an objective has fewer than `LEAST_ROWS`.

    Args:
        samples_quantiles: (N, K, levels) quantiles of each row's samples at `LEVELS`.
        spread: (N, K) interquartile range of each row's samples.
        targets: (N, K); rows whose target or quantiles are not finite are left out.
    """
    values, floors = [], []
    for k in range(targets.shape[1]):
        is_usable = np.isfinite(targets[:, k]) & np.isfinite(samples_quantiles[:, k]).all(1) & np.isfinite(spread[:, k])
        y, q, s = targets[is_usable, k], samples_quantiles[is_usable, k], spread[is_usable, k]
        n = len(y)
        # A share of the typical spread, so that rows with equal samples have offsets as well.
        if n < LEAST_ROWS:
            return None
        floor = 0.1 * float(np.median(s) or s.mean() or 10.0)
        residuals = np.sort((y[:, None] - q) / (s + floor)[:, None], axis=0)  # (N, levels)
        # Between two ranks the offset is interpolated. Rounding ranks outward would hold 2 / (n + 1) more than nominal.
        columns = zip(LEVELS, residuals.T, strict=True)
        values.append([float(np.interp(q * (n + 1), np.arange(1, n + 1), column)) for q, column in columns])
        floors.append(floor)
    return Offsets(values, floors)


def spread_of(samples: Tensor) -> Tensor:
    """(B, K) interquartile range of samples (B, S, K)."""
    quartiles = quantiles(samples, (0.25, 0.75))
    return quartiles[..., 1] - quartiles[..., 0]


def move_samples(samples: Tensor, offsets: Offsets) -> Tensor:
    """Samples (B, S, K), each moved by the offset of its level among the samples of its row and objective.

    Sample i of n in increasing order has level i / (n + 1); offsets are interpolated between `LEVELS` and constant
    beyond them. No sample is moved across the median of its row, which remains the point estimate; this only widens
    intervals. Rows with samples that are not finite stay as they are.
    """
    n = samples.shape[1]
    order = samples.argsort(dim=1, stable=True).argsort(1).cpu()  # (B, S, K), rank of each sample, from 0
    grid = np.arange(1, n + 1) / (n + 1)
    steps = np.stack([np.interp(grid, LEVELS, values) for values in offsets.values], 1)  # (S, K)
    by_rank = torch.from_numpy(steps).expand(len(samples), -1, -1).gather(1, order).to(samples)
    scale = spread_of(samples) + torch.tensor(offsets.floor, dtype=samples.dtype, device=samples.device)  # (B, K)
    moved = samples + by_rank * scale.unsqueeze(1)
    median = quantiles(samples, (0.5,)).transpose(1, 2)  # (B, 1, K)
    is_lower = 2 * (order.to(samples.device) + 1) < n + 1
    moved = torch.where(is_lower, moved.minimum(median), moved.maximum(median))
    return moved.where(samples.isfinite().all(1, keepdim=True), samples)


def check_stored(stored: Any, num_tokens: int, n_objectives: int, size: int) -> dict[str, Any]:
    """The calibration in a checkpoint, after a check of its structure.

    Args:
        stored: {"magnitudes": K lists of patterns, "temperatures": (num_tokens,), "offsets", "floor"}, each of them
            None where the run did not fit it.
        num_tokens: tokens of a number.
        n_objectives: K.
        size: size of the vocabulary of number tokens.

    Raises:
        UserError: the structure is another one.
    """

    def is_list(values: Any, length: int) -> bool:
        return isinstance(values, list) and len(values) == length

    def are_numbers(values: Any, length: int, above: float = -math.inf) -> bool:
        return is_list(values, length) and all(isinstance(v, float) and above < v < math.inf for v in values)

    def is_pattern(tokens: Any) -> bool:
        is_number = isinstance(tokens, list | tuple) and len(tokens) == num_tokens
        return is_number and all(type(token) is int and ANY <= token < size for token in tokens)

    names = ("magnitudes", "temperatures", "offsets", "floor")
    is_valid = isinstance(stored, dict) and stored.keys() == {*names}
    if is_valid:
        magnitudes, temperatures, offsets, floor = (stored[name] for name in names)
        k = n_objectives
        is_valid = (
            (magnitudes is None or (is_list(magnitudes, k) and all(isinstance(m, list) and m for m in magnitudes)))
            and all(is_pattern(pattern) for patterns in magnitudes or () for pattern in patterns)
            and (temperatures is None or are_numbers(temperatures, num_tokens, above=0))
            and (offsets is None) == (floor is None)
            and (floor is None or are_numbers(floor, k, above=0))
            and (offsets is None or (is_list(offsets, k) and all(are_numbers(v, len(LEVELS)) for v in offsets)))
        )
    if not is_valid:
        raise UserError("the checkpoint's calibration of numbers is damaged: give another checkpoint")
    return stored
