"""The keys and values of the past, kept so that a new token reads them instead of computing them again."""

import torch
from torch import Tensor

from zoo.errors import UserError


class KVCache:
    """Preallocated keys and values, filled from the left: one tensor (B, 2, KV, max_len, hd) a layer."""

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        max_len: int,
        head_dim: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        shape = (batch, 2, n_kv_heads, max_len, head_dim)
        self.max_len = max_len
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(n_layers)]

    def extend(self, layer: int, start: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Writes key and value (B, KV, T, hd) at start; returns all so far, (B, KV, start + T, hd) each."""
        end = start + key.shape[2]
        if end > self.max_len:
            raise UserError(f"{end} positions do not fit a key-value cache of {self.max_len}")
        self.layers[layer][:, 0, :, start:end] = key
        self.layers[layer][:, 1, :, start:end] = value
        keys, values = self.layers[layer][:, :, :, :end].unbind(1)
        return keys, values
