"""Rotary position embedding: pair i of a head turns by the angle position * theta^(-2i/hd).

Su et al. 2021, https://arxiv.org/abs/2104.09864. Pairs are adjacent, (x[2i], x[2i+1]), as in the paper, Meta's
Llama and llama2.c; Hugging Face pairs x[i] with x[i + hd/2] and stores permuted weights instead.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import UserError


def frequencies(head_dim: int, theta: float, scaling: Mapping[str, Any] | None = None) -> Tensor:
    """Radians per position of each pair, fp32 (hd/2,).

    `scaling` is Llama 3.1's, with Hugging Face's keys (factor, low_freq_factor, high_freq_factor,
    original_max_position_embeddings): wavelengths that fit the original context high_freq_factor times or
    more stay, those that fit it fewer than low_freq_factor times grow by `factor`, those between are blended.
    """
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)  # (hd/2,)
    if scaling is None:
        return frequency
    turns = frequency * scaling["original_max_position_embeddings"] / (2 * math.pi)  # in the original context
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / scaling["factor"]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the adjacent pairs of x (..., hd) by the angles of cos and sin (..., hd/2), in fp32."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # (..., hd/2) each
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x)  # (..., hd)


class RotaryEmbedding(nn.Module):
    """Rotates queries and keys by their positions; the tables (max_seq_len, hd/2) stay fp32 under `.half()`."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self, head_dim: int, max_seq_len: int, theta: float = 10000.0, scaling: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        if head_dim % 2:
            raise UserError(f"rotary embedding turns pairs, so head_dim must be even, not {head_dim}")
        angles = torch.outer(torch.arange(max_seq_len).float(), frequencies(head_dim, theta, scaling))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def _apply(self, fn, recurse=True):
        tables = self.cos, self.sin
        super()._apply(fn, recurse)
        if self.cos.dtype != tables[0].dtype:  # a cast: follow it to its device, keep fp32
            self.cos, self.sin = (table.to(self.cos.device) for table in tables)
        return self

    def forward(self, query: Tensor, key: Tensor, start: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Rotates query (B, T, H, hd) and key (B, T, KV, hd), which stand at positions start ... start + T - 1.

        `start` is one position for all rows, or a tensor (B,) with one per row; negative ones (left padding)
        count as 0. A range that ends beyond max_seq_len raises ValueError (IndexError from a tensor).
        """
        length = query.shape[1]
        if isinstance(start, int):
            if start + length > len(self.cos):
                raise UserError(
                    f"position {start + length - 1} lies beyond the rotary table of {len(self.cos)} positions"
                )
            cos, sin = self.cos[start : start + length, None], self.sin[start : start + length, None]
        else:
            at = start.reshape(-1, 1) + torch.arange(length, device=start.device)  # (B or 1, T)
            cos, sin = (table[at.clamp(min=0)].unsqueeze(2) for table in (self.cos, self.sin))
        return rotate(query, cos, sin), rotate(key, cos, sin)
