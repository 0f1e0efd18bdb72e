"""Causal multi-head attention with grouped key-value heads.

softmax(q k^T / sqrt(hd) + mask) v, Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; H / KV query heads
share one key-value head, Ainslie et al. 2023, https://arxiv.org/abs/2305.13245.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.kv_cache import KVCache
from zoo.layers.linear import Linear
from zoo.layers.rotary import RotaryEmbedding


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Query (B, H, T, hd) over key and value (B, KV, S, hd) where the boolean mask (B or 1, 1, T, S) allows.

    The heads of a group become further queries of the key-value head that they share: with a mask SDPA's
    `enable_gqa` would leave the fused kernels. Returns (B, H, T, hd).
    """
    batch, heads, length, head_dim = query.shape
    group = heads // key.shape[1]
    query = query.reshape(batch, -1, group * length, head_dim)  # (B, KV, group T, hd)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.repeat(1, 1, group, 1))
    return mixed.view(batch, heads, length, head_dim)


def visible(start: int, end: int, shift: Tensor | None = None, device: torch.device | None = None) -> Tensor:
    """What the columns start ... end - 1 see of the columns before `end`: (B or 1, 1, T, end), boolean.

    All up to themselves, but for the first `shift` (B,) of a row, which are padding; padding sees itself, lest its
    softmax be over nothing.
    """
    column = torch.arange(end, device=device)
    row = column[start:, None]  # (T, 1)
    mask = (column <= row)[None, None]  # (1, 1, T, end)
    if shift is None:
        return mask
    return mask & (column >= shift[:, None, None, None]) | (column == row)


class Attention(nn.Module):
    """Self-attention without biases; the three input projections are one matrix `wqkv`, rows q, k, v."""

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, dim // n_heads
        self.wqkv = Linear(dim, (n_heads + 2 * n_kv_heads) * self.head_dim, bias=False)
        self.wo = Linear(n_heads * self.head_dim, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        rotary: RotaryEmbedding,
        cache: tuple[KVCache, int, int] | None = None,
        shift: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, dim) -> (B, T, dim); position t sees 0 ... t.

        With cache = (keys and values, this layer's number, start), x stands at columns start ... start + T - 1
        of the cache, and `mask` (B or 1, 1, T, start + T) says what it sees (None: start is 0, all before it).
        `shift` (B,) is the number of padding columns on the left, which positions do not count.
        """
        heads = self.n_heads, self.n_kv_heads, self.n_kv_heads
        qkv = self.wqkv(x).unflatten(-1, (-1, self.head_dim))  # (B, T, H + 2 KV, hd)
        query, key, value = qkv.split(heads, dim=2)  # (B, T, H or KV, hd)
        start = 0 if cache is None else cache[2]
        query, key = rotary(query, key, start if shift is None else start - shift)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # (B, H, T, hd)
        if cache is not None:
            key, value = cache[0].extend(cache[1], start, key, value)  # (B, KV, start + T, hd)
        if mask is None:
            gqa = self.n_heads != self.n_kv_heads
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=gqa)
        else:
            mixed = masked_attention(query, key, value, mask)
        return self.wo(mixed.transpose(1, 2).flatten(2))  # (B, T, dim)
