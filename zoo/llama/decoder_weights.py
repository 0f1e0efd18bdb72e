"""Copies of a Llama's matrices for decoding: with the preceding norm included, in fp32, bf16 or 8 bits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.layers import RMSNorm

Scaled = tuple[Tensor, Tensor | None]  # matrices (m, n) or (L, m, n), and in 8 bits the factors (m,) or (L, m) of rows
BLOCK_ROWS = 512  # of a matrix that are copied at a time


def matrices_of(model: Any) -> list[list[tuple[Tensor, RMSNorm | None]]]:
    """The matrices (m, n) of each kind, each with the norm of its input: wqkv, wo, w13 and w2 of all layers, output.

    Args:
        model: a `zoo.llama.Llama`.
    """
    layers = model.layers
    return [
        [(layer.attention.wqkv.weight, layer.attention_norm) for layer in layers],
        [(layer.attention.wo.weight, None) for layer in layers],
        [(layer.feed_forward.w13.weight, layer.ffn_norm) for layer in layers],
        [(layer.feed_forward.w2.weight, None) for layer in layers],
        [(model.output_weight, model.norm)],
    ]


def norm_factors(norm: RMSNorm) -> Tensor:
    """The factors (n,) that make RMSNorm of x / sqrt(|x|^2 + n eps)."""
    return norm.weight.detach().float() * len(norm.weight) ** 0.5


def with_norm(weight: Tensor, norm: RMSNorm | None) -> Tensor:
    """A matrix (m, n) in fp32, whose columns, one for each input, are multiplied by the factors of the norm."""
    matrix = weight.detach().float()
    return matrix if norm is None else matrix * norm_factors(norm)


def in_8_bits(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers (m, n) from -127 to 127, in fp32, and the factors (m,) by which they give the matrix."""
    scale = matrix.abs().amax(1) / 127
    return (matrix / scale.clamp(min=torch.finfo(matrix.dtype).tiny)[:, None]).round_(), scale


def transposed(weight: Tensor, norm: RMSNorm | None, dtype: torch.dtype) -> Tensor:
    """A matrix (n, m) for the eager step; in fp32 for weights of 8 bits."""
    matrix = with_norm(weight, norm)
    if dtype == torch.int8:
        numbers, scale = in_8_bits(matrix)
        matrix, dtype = numbers * scale[:, None], torch.float32
    return matrix.T.contiguous().to(dtype)


def stacked(kind: Sequence[tuple[Tensor, RMSNorm | None]], dtype: torch.dtype) -> Scaled:
    """The matrices (L, m, n) of all layers, and in 8 bits the factors (L, m) of their rows, for the compiled steps."""
    shape, device = kind[0][0].shape, kind[0][0].device
    stack = torch.empty(len(kind), *shape, dtype=dtype, device=device)
    scales = torch.empty(len(kind), shape[0], dtype=torch.float32, device=device) if dtype == torch.int8 else None
    for number, (weight, norm) in enumerate(kind):
        # Some rows at a time, so that what is computed in between stays in a CPU's cache.
        for start in range(0, shape[0], BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            matrix = with_norm(weight[part], norm)
            if scales is not None:
                matrix, scales[number, part] = in_8_bits(matrix)
            stack[number, part] = matrix
    return stack, scales
