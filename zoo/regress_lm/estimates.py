"""What S samples of a number say: point estimates, quantiles, and how far the whole distribution can be trusted."""

import numpy as np
import torch
from torch import Tensor

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def summary(samples: Tensor, log_prob: Tensor) -> dict[str, Tensor]:
    """Point estimates from samples (B, S, K) with log-probabilities (B, S).

    Returns:
        "median", "mean", "std" (B, K) over the samples, "mode" (B, K), the likeliest of them, and "quantiles"
        (B, K, 5) at 5, 25, 50, 75 and 95%. A sample of NaN (an invalid number) is left out.
    """
    at = torch.tensor(QUANTILES, dtype=samples.dtype, device=samples.device)
    between = "nearest" if samples.isinf().any() else "linear"  # nothing lies between a number and infinity
    quantiles = samples.nanquantile(at, dim=1, interpolation=between).permute(1, 2, 0)  # (B, K, 5)
    mean = samples.nanmean(1)
    return {
        "median": quantiles[..., 2],
        "mean": mean,
        "std": (samples - mean.unsqueeze(1)).square().nanmean(1).sqrt(),
        "mode": samples[torch.arange(len(samples)), log_prob.argmax(1)],
        "quantiles": quantiles,
    }


def crps(samples: Tensor, targets: Tensor) -> Tensor:
    """(B, K) continuous ranked probability score of samples (B, S, K), in the targets' unit; smaller is better.

    E|X - y| - E|X - X'| / 2 over the samples (Gneiting and Raftery 2007), the pairs X != X' by their ranks: unbiased,
    and for a single sample the absolute error. NaN for a row with a sample of NaN.
    """
    n = samples.shape[1]
    error = (samples - targets.unsqueeze(1)).abs().mean(1)  # (B, K)
    if n == 1:
        return error
    rank = torch.arange(1, n + 1, device=samples.device, dtype=samples.dtype).view(1, n, 1)
    spread = ((2 * rank - n - 1) * samples.sort(1).values).sum(1) * 2 / (n * (n - 1))  # (B, K), E|X - X'|
    return error - spread / 2


def pit(samples: Tensor, targets: Tensor) -> Tensor:
    """(B, K) the share of samples below the target, ties counted half: uniform on [0, 1] where calibrated.

    The probability integral transform of Dawid (1984).
    """
    y = targets.unsqueeze(1)
    return ((samples < y).double() + 0.5 * (samples == y).double()).mean(1)


def coverage(places: np.ndarray, level: float) -> float:
    """The share of targets, by their `places` in their distributions, within the central interval for `level`."""
    return float((np.abs(places - 0.5) <= level / 2).mean())
