"""The gated feed-forward layer SwiGLU: w2(silu(w1 x) * w3 x). Shazeer 2020, https://arxiv.org/abs/2002.05202."""

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.linear import Linear


class FeedForward(nn.Module):
    """SwiGLU over the last axis, (..., dim) -> (..., dim); `w13` holds gate w1 and up w3, in this order."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w13 = Linear(dim, 2 * hidden_dim, bias=False)
        self.w2 = Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.w13(x).chunk(2, dim=-1)  # (..., hidden_dim) each
        return self.w2(F.silu(gate) * up)
