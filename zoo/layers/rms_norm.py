"""Root mean square normalization: y = x / sqrt(mean(x^2) + eps) * weight.

Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467, equation 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Scales each vector (..., dim) to unit root mean square, then by a learnt weight (dim,).

    The mean is taken in fp32 whatever the input's type, and the result cast back before the weight: so do
    Llama and its relatives, and at 16 bits the order shows.
    """

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, eps=self.eps).type_as(x) * self.weight
