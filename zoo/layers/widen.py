"""Precision of sums, norms and losses: at least fp32, and fp64 where the network computes in fp64."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """x in fp32, or unchanged if it is fp64."""
    return x if x.dtype == torch.float64 else x.float()
