"""Key-value cache: keys and values of earlier tokens, so that a new token does not compute them again."""

import torch
from torch import Tensor

from zoo.errors import UserError


class KVCache:
    """Preallocated keys and values, filled from the left: for each layer one tensor (B, 2, KV, max_len, hd).

    Args:
        n_layers: number of tensors; attention layers, or attention layers times evaluations of each.
        batch: rows B.
        n_kv_heads: key-value heads KV.
        max_len: columns; the longest text, prompt included.
        head_dim: size of a head, hd.
        dtype: dtype of the tensors; None: torch's default.
        device: device of the tensors; None: torch's default.
    """

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
        """Write key and value (B, KV, T, hd) at columns start ... start + T - 1 of a layer.

        Returns:
            All keys and values so far, (B, KV, start + T, hd) each.

        Raises:
            UserError: the columns exceed max_len.
        """
        end = start + key.shape[2]
        if end > self.max_len:
            raise UserError(f"{end} positions do not fit a key-value cache of {self.max_len}")
        self.layers[layer][:, 0, :, start:end] = key
        self.layers[layer][:, 1, :, start:end] = value
        keys, values = self.layers[layer][:, :, :, :end].unbind(1)
        return keys, values
