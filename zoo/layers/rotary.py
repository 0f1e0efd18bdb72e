"""Rotary position embedding: pair i of a head is rotated by the angle position * theta^(-2i/hd).

Su et al. 2021, https://arxiv.org/abs/2104.09864, equation 34. Pairs are adjacent, (x[2i], x[2i+1]), as in the paper,
Meta's Llama and llama2.c; Hugging Face pairs x[i] with x[i + hd/2] and stores permuted weights instead.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.layers.widen import widen
from zoo.private_apis.torch_api import FixedBuffers


def frequencies(head_dim: int, theta: float, scaling: Mapping[str, Any] | None = None) -> Tensor:
    """Radians per position of each pair, fp32 (hd/2,).

    Args:
        head_dim: size of a head, hd; even.
        theta: base of the frequencies; larger values rotate the last pairs more slowly.
        scaling: Llama 3.1's change of the frequencies for long contexts, with Hugging Face's keys factor,
            low_freq_factor, high_freq_factor, original_max_position_embeddings. Pairs that make at least
            high_freq_factor turns within the original context keep their frequency; pairs that make at most
            low_freq_factor turns have it divided by `factor`; between the two it is interpolated. None: no change.
    """
    # theta^(-2i/hd): the first pair turns by 1 radian per position, later pairs turn more slowly.
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)  # (hd/2,)
    if scaling is None:
        return frequency
    # Llama 3.1: fast pairs keep their frequency, slow pairs are slowed by `factor`, and those between interpolate.
    turns = frequency * scaling["original_max_position_embeddings"] / (2 * math.pi)  # in the original context
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return keep * frequency + (1 - keep) * frequency / scaling["factor"]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the adjacent pairs of x (..., hd) by angles given as cos and sin (..., hd/2); the result has x's dtype.

    Computed in fp32, or in fp64 if x is fp64: a cast to fp32 in between would make an fp64 network discontinuous.
    """
    if x.device.type == "cuda":
        return _rotate_without_slices(x, cos, sin)
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not holds_pairs(x):
        return rotate_slices(x, cos, sin)
    # On a CPU one complex product takes a seventh of the time of the products of slices, forward and backward.
    pairs = torch.view_as_complex(widen(x).unflatten(-1, (-1, 2)))  # (..., hd/2)
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).type_as(x)  # (..., hd)


def rotate_slices(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate` by products of real numbers: the 2 x 2 rotation matrix times each pair (a, b)."""
    a, b = widen(x).unflatten(-1, (-1, 2)).unbind(-1)  # (..., hd/2) each
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).type_as(x)  # (..., hd)


def holds_pairs(x: Tensor) -> bool:
    """Whether the adjacent pairs of x (..., hd) can be viewed as complex numbers: they begin at even addresses."""
    return x.stride(-1) == 1 and x.storage_offset() % 2 == 0 and all(stride % 2 == 0 for stride in x.stride()[:-1])


def _rotate_without_slices(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotate_slices` for compiled kernels on a GPU, to the same bits: (a, b) cos + (b, a) (-sin, sin).

    The gradient of slices is a concatenation, whose kernels cost 3 % of a training step of Llama 110M on an H200.
    """
    wide = widen(x)
    both_cos, both_sin = (table[..., None].expand(*table.shape, 2).flatten(-2) for table in (cos, sin))  # (..., hd)
    sign = torch.arange(x.shape[-1], device=x.device) % 2 * 2 - 1  # -1, 1, -1, 1 ...
    swapped = wide.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (wide * both_cos + swapped * (both_sin * sign)).type_as(x)


class RotaryEmbedding(FixedBuffers):
    """Rotates queries and keys by their positions. The tables of angles stay fp32 when the module is cast.

    Args:
        head_dim: size of a head, hd; even.
        max_seq_len: number of positions in the tables, which are (max_seq_len, hd/2).
        theta: base of the frequencies; larger values rotate the last pairs more slowly.
        scaling: Llama 3.1's scaling for long contexts, see `frequencies`; None: none.

    Raises:
        UserError: head_dim is odd.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, head_dim: int, max_seq_len: int, theta: float = 10000.0, scaling: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        if head_dim % 2:
            raise UserError(f"rotary embedding rotates pairs, so head_dim must be even, not {head_dim}")
        # Angle of each position and pair.
        angles = torch.outer(torch.arange(max_seq_len).float(), frequencies(head_dim, theta, scaling))
        self.register_buffer("cos", angles.cos(), persistent=False)  # (max_seq_len, hd/2)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, query: Tensor, key: Tensor, start: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Rotate query (B, T, H, hd) and key (B, T, KV, hd) at positions start ... start + T - 1.

        Args:
            query: projected queries.
            key: projected keys.
            start: position of the first column, for all rows, or a tensor (B,) with one per row. Negative positions
                (left padding) count as 0.

        Raises:
            UserError: a position is beyond max_seq_len (IndexError where `start` is a tensor).
        """
        # With one start for all rows, the angles are a slice of the tables; otherwise each row looks up its own.
        length = query.shape[1]
        if isinstance(start, int):
            if start + length > len(self.cos):
                raise UserError(
                    f"position {start + length - 1} is beyond the rotary table of {len(self.cos)} positions: raise the "
                    "model's max_seq_len or shorten the text"
                )
            cos, sin = self.cos[start : start + length, None], self.sin[start : start + length, None]  # (T, 1, hd/2)
        else:
            at = start.reshape(-1, 1) + torch.arange(length, device=start.device)  # (B or 1, T)
            cos, sin = (table[at.clamp(min=0)].unsqueeze(2) for table in (self.cos, self.sin))  # (B or 1, T, 1, hd/2)
        return rotate(query, cos, sin), rotate(key, cos, sin)
