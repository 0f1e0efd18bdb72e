"""Statistics of sampled numbers: point estimates, quantiles, CRPS and calibration."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from zoo.training.number_range import mean_of

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
INTERVALS = {"50": (1, 3), "90": (0, 4)}
"""Central interval by its probability in percent -> the places of its ends in `QUANTILES`."""


def quantiles(samples: Tensor, levels: Sequence[float]) -> Tensor:
    """Quantiles (B, K, Q) of samples (B, S, K) at Q levels. NaN samples are left out.

    The quantile at level q is at rank q (n + 1) of n samples (type 6 of Hyndman and Fan 1996): a further draw from
    the same distribution is below it with probability q for every n of at least 1 / min(q, 1 - q) - 1. With numpy's
    default, type 7, the interval from 5% to 95% of 128 samples holds 88.6% of further draws, that of 16 samples 79.4%.
    """
    ordered = samples.sort(1).values.transpose(1, 2)  # (B, K, S), NaN last
    n = (~ordered.isnan()).sum(-1, keepdim=True)  # (B, K, 1)
    level = torch.tensor(levels, dtype=samples.dtype, device=samples.device)
    rank = (level * (n + 1) - 1).minimum(n - 1).clamp(min=0)  # (B, K, Q), counted from 0
    below = rank.floor()
    low, high = (ordered.gather(-1, place.long()) for place in (below, rank.ceil()))
    # Interpolation between a number and infinity, or between equal infinities, is undefined.
    between = torch.where(rank - below < 0.5, low, high)
    share, width = rank - below, high - low
    # The width of two large numbers of opposite signs is infinite.
    within = torch.where(width.isfinite(), low + share * width, (1 - share) * low + share * high)
    return torch.where(low.isfinite() & high.isfinite(), within, between)


def summary(samples: Tensor, log_prob: Tensor) -> dict[str, Tensor]:
    """Point estimates and quantiles of samples (B, S, K) with log-probabilities (B, S). NaN samples are left out.

    Returns:
        "median", "mean", "std" (B, K) of the samples; "mode" (B, K), the most likely sample (for a row in which
        every sample has a NaN, that of each objective); and "quantiles" (B, K, 5) at 5, 25, 50, 75 and 95%.
    """
    levels = quantiles(samples, QUANTILES)  # (B, K, 5)
    unit = _units(samples)  # (B, 1, K)
    scaled = samples / unit
    mean = scaled.nanmean(1)  # (B, K)
    return {
        "median": levels[..., 2],
        "mean": mean * unit.squeeze(1),
        "std": (scaled - mean.unsqueeze(1)).square().nanmean(1).sqrt() * unit.squeeze(1),
        "mode": _mode(samples, log_prob),
        "quantiles": levels,
    }


def _mode(samples: Tensor, log_prob: Tensor) -> Tensor:
    """(B, K) the most likely of samples (B, S, K) with log-probabilities (B, S), as `summary` describes it."""
    is_number = ~samples.isnan()  # (B, S, K)
    is_complete = is_number.all(-1, keepdim=True)  # (B, S, 1)
    usable = torch.where(is_complete.any(1, keepdim=True), is_complete, is_number)  # (B, S, K)
    place = log_prob.unsqueeze(-1).masked_fill(~usable, -torch.inf).argmax(1, keepdim=True)  # (B, 1, K)
    return samples.gather(1, place).squeeze(1)


def crps(samples: Tensor, targets: Tensor) -> Tensor:
    """Continuous ranked probability score (B, K) of samples (B, S, K), in the targets' unit; smaller is better.

    E|X - y| - E|X - X'| / 2 over the samples (Gneiting and Raftery 2007), where X and X' are different samples. Its
    expectation is the same for every number of samples above 1; for a single sample it is the absolute error. NaN for a
    row with a NaN sample.
    """
    n = samples.shape[1]
    unit = _units(torch.cat([samples, targets.unsqueeze(1)], 1))  # (B, 1, K)
    samples, targets = samples / unit, targets / unit.squeeze(1)
    error = (samples - targets.unsqueeze(1)).abs().mean(1)  # (B, K)
    if n == 1:
        return error * unit.squeeze(1)
    # Sum over pairs in n log n operations: in sorted order sample i is the larger of i - 1 pairs.
    rank = torch.arange(1, n + 1, device=samples.device, dtype=samples.dtype).view(1, n, 1)
    spread = ((2 * rank - n - 1) * samples.sort(1).values).sum(1) * 2 / (n * (n - 1))  # (B, K), E|X - X'|
    return (error - spread / 2) * unit.squeeze(1)


def _units(samples: Tensor) -> Tensor:
    """(B, 1, K) a unit in which sums and squares of samples (B, S, K) stay within the range of float64.

    It is 1 for numbers from 1e-100 to 1e100 and for other types, and a power of two, which does not round, otherwise.
    """
    largest = samples.abs().nan_to_num(0.0, 0.0).amax(1, keepdim=True)
    unit = torch.ones_like(largest)
    if samples.dtype != torch.float64:
        return unit
    unit = unit.masked_fill(largest > 1e100, 2.0**600)
    return unit.masked_fill((largest < 1e-100) & (largest > 0), 2.0**-600)


def pit(samples: Tensor, targets: Tensor) -> Tensor:
    """Probability integral transform (B, K), Dawid 1984: the share of samples (B, S, K) below the target, ties half.

    It is uniform on [0, 1] for calibrated predictions.
    """
    y = targets.unsqueeze(1)
    return ((samples < y).double() + 0.5 * (samples == y).double()).mean(1)


def scores_of_target(outputs: Mapping[str, np.ndarray], k: int) -> dict[str, float]:
    """Mean "crps", "coverage_50" and "coverage_90" of target k.

    Args:
        outputs: "crps" and "target" (N, K), and "quantiles" (N, K, 5).
        k: the target, from 0.
    """
    shares = coverage(outputs["quantiles"][:, k], outputs["target"][:, k])
    return {"crps": mean_of(outputs["crps"][:, k])} | {f"coverage_{name}": s for name, s in shares.items()}


def coverage(quantiles: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """For each of `INTERVALS` the share of targets (...) from its lower to its upper end, both included.

    Args:
        quantiles: (..., 5) at `QUANTILES`.
        targets: (...).
    """
    return {
        name: float(((quantiles[..., low] <= targets) & (targets <= quantiles[..., high])).mean())
        for name, (low, high) in INTERVALS.items()
    }
