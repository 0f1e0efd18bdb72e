"""Cumulative sum that also works under deterministic algorithms on a GPU."""

import torch
from torch import Tensor


def cumulative_sum(x: Tensor, dim: int) -> Tensor:
    """x.cumsum(dim), on the CPU where determinism is required, which CUDA's kernel for floats lacks."""
    if x.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        return x.cpu().cumsum(dim).to(x.device)
    return x.cumsum(dim)
