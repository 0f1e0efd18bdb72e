"""Root mean square normalization: y = x / sqrt(mean(x^2) + eps) * weight.

Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467, equation 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.widen import widen


class RMSNorm(nn.Module):
    """Scales each vector (..., dim) to unit root mean square, then by a learned weight (dim,).

    The mean is taken in fp32, or in fp64 for fp64 x, and the result is cast back before it is multiplied by the weight.
    Llama does it in this order, and in 16 bits the order changes the result.

    Args:
        dim: size of the last axis.
        eps: added to the mean square before the root.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(widen(x), self.weight.shape, eps=self.eps).type_as(x) * self.weight  # (..., dim)
