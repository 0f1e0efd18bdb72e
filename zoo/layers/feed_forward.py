"""Gated feed-forward layer SwiGLU: w2(silu(w1 x) * w3 x).

Shazeer 2020, https://arxiv.org/abs/2002.05202, equation 6.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.linear import Linear


class FeedForward(nn.Module):
    """SwiGLU over the last axis, (..., dim) -> (..., dim). The matrix `w13` holds the rows of w1 (gate), then of w3
    (up).

    Args:
        dim: width of the input and output.
        hidden_dim: width between w1, w3 and w2.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w13 = Linear(dim, 2 * hidden_dim, bias=False)
        self.w2 = Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w13(x).chunk(2, dim=-1)  # (..., hidden_dim) each
        return self.w2(F.silu(gate) * up)  # (..., dim)
