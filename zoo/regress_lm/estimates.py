"""Statistics of sampled numbers: point estimates, quantiles, CRPS and calibration."""

import numpy as np
import torch
from torch import Tensor

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def summary(samples: Tensor, log_prob: Tensor) -> dict[str, Tensor]:
    """Point estimates and quantiles of samples (B, S, K) with log-probabilities (B, S). NaN samples are left out.

    Returns:
        "median", "mean", "std" (B, K) of the samples; "mode" (B, K), the most likely sample; and "quantiles"
        (B, K, 5) at 5, 25, 50, 75 and 95%.
    """
    levels = torch.tensor(QUANTILES, dtype=samples.dtype, device=samples.device)
    # Interpolation between a number and infinity is undefined.
    interpolation = "nearest" if samples.isinf().any() else "linear"
    quantiles = samples.nanquantile(levels, dim=1, interpolation=interpolation).permute(1, 2, 0)  # (B, K, 5)
    mean = samples.nanmean(1)  # (B, K)
    return {
        "median": quantiles[..., 2],
        "mean": mean,
        "std": (samples - mean.unsqueeze(1)).square().nanmean(1).sqrt(),
        "mode": samples[torch.arange(len(samples)), log_prob.argmax(1)],
        "quantiles": quantiles,
    }


def crps(samples: Tensor, targets: Tensor) -> Tensor:
    """Continuous ranked probability score (B, K) of samples (B, S, K), in the targets' unit; smaller is better.

    E|X - y| - E|X - X'| / 2 over the samples (Gneiting and Raftery 2007), where X and X' are different samples. It is
    unbiased, and the absolute error for a single sample. NaN for a row with a NaN sample.
    """
    n = samples.shape[1]
    error = (samples - targets.unsqueeze(1)).abs().mean(1)  # (B, K)
    if n == 1:
        return error
    # Sum over pairs in n log n operations: in sorted order sample i is the larger of i - 1 pairs.
    rank = torch.arange(1, n + 1, device=samples.device, dtype=samples.dtype).view(1, n, 1)
    spread = ((2 * rank - n - 1) * samples.sort(1).values).sum(1) * 2 / (n * (n - 1))  # (B, K), E|X - X'|
    return error - spread / 2


def pit(samples: Tensor, targets: Tensor) -> Tensor:
    """Probability integral transform (B, K), Dawid 1984: the share of samples (B, S, K) below the target, ties half.

    It is uniform on [0, 1] for calibrated predictions.
    """
    y = targets.unsqueeze(1)
    return ((samples < y).double() + 0.5 * (samples == y).double()).mean(1)


def coverage(pit_values: np.ndarray, level: float) -> float:
    """The share of targets inside the central interval of probability `level`, from their `pit` values."""
    return float((np.abs(pit_values - 0.5) <= level / 2).mean())
