"""Multi-head attention with grouped key-value heads, causal or not: softmax(q k^T / sqrt(hd) + mask) v.

Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, equation 1. Groups of H / KV query heads share one key-value
head: Ainslie et al. 2023, https://arxiv.org/abs/2305.13245.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.layers.kv_cache import KVCache
from zoo.layers.linear import Linear
from zoo.layers.rotary import RotaryEmbedding


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention -> (B, H, T, hd).

    Args:
        query: (B, H, T, hd), H a multiple of KV.
        key: (B, KV, S, hd).
        value: (B, KV, S, hd).
        causal: position t sees positions 0 ... t, for T == S; ignored where `mask` is given.
        mask: boolean (B or 1, 1, T or 1, S), True where a query may see a key; None: see `causal`.
    """
    # Without a mask, or with a key-value head for each query head, SDPA's fused kernels do everything.
    n_heads, n_kv_heads = query.shape[1], key.shape[1]
    if mask is None:
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=n_heads != n_kv_heads)
    if n_heads == n_kv_heads:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # With a mask, SDPA's enable_gqa does not use the fused kernels. So treat the heads of a group as additional queries
    # of their shared key-value head.
    batch, _, length, head_dim = query.shape
    group = n_heads // n_kv_heads
    query = query.reshape(batch, n_kv_heads, group * length, head_dim)  # (B, KV, group T, hd)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.repeat(1, 1, group, 1))
    return mixed.view(batch, n_heads, length, head_dim)


def causal_mask(start: int, end: int, left_padding: Tensor | None = None, device: torch.device | None = None) -> Tensor:
    """Causal mask for columns start ... end - 1 over columns 0 ... end - 1: boolean (B or 1, 1, end - start, end).

    A column sees all columns up to itself except padding. A padding column sees itself, so that no softmax row is fully
    masked.

    Args:
        start: first column of the queries.
        end: number of columns of the keys.
        left_padding: (B,) number of padding columns on the left of each row; None: none.
        device: device of the mask; None: torch's default.
    """
    # Queries are the last columns, so row r of the mask is column start + r.
    column = torch.arange(end, device=device)
    row = column[start:, None]  # (T, 1)
    mask = (column <= row)[None, None]  # (1, 1, T, end)
    if left_padding is None:
        return mask
    return mask & (column >= left_padding[:, None, None, None]) | (column == row)


class Attention(nn.Module):
    """Self-attention without biases. The three input projections are one matrix `wqkv` with the rows of q, k and v.

    Args:
        dim: width of the input and output.
        n_heads: query heads H; they divide dim.
        n_kv_heads: key-value heads KV, a divisor of n_heads.
        causal: whether position t sees positions 0 ... t only.
    """

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int, causal: bool = True) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim, self.causal = n_heads, n_kv_heads, dim // n_heads, causal
        self.wqkv = Linear(dim, (n_heads + 2 * n_kv_heads) * self.head_dim, bias=False)
        self.wo = Linear(n_heads * self.head_dim, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        rotary: RotaryEmbedding | None = None,
        cache: tuple[KVCache, int, int] | None = None,
        left_padding: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, dim) -> (B, T, dim).

        Args:
            x: the input.
            rotary: rotates queries and keys by their positions; None: no rotary embedding.
            cache: (key-value cache, index of this layer in it, start). x occupies columns start ... start + T - 1 of
                the cache, and `mask` covers start + T keys; without a mask start must be 0. None: no cache.
            left_padding: (B,) number of padding columns on the left of each row; positions count from the first token.
                None: none.
            mask: boolean (B or 1, 1, T or 1, S), True where a query may see a key; None: see `causal`.
        """
        # Project x to q, k and v in one product and split its heads.
        heads = self.n_heads, self.n_kv_heads, self.n_kv_heads
        qkv = self.wqkv(x).unflatten(-1, (-1, self.head_dim))  # (B, T, H + 2 KV, hd)
        query, key, value = qkv.split(heads, dim=2)  # (B, T, H or KV, hd)
        # Rotate q and k by their positions, which do not count padding.
        start = 0 if cache is None else cache[2]
        if rotary is not None:
            query, key = rotary(query, key, start if left_padding is None else start - left_padding)
        # Add the new keys and values to those in the cache and attend to all of them.
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # (B, H, T, hd)
        if cache is not None:
            key, value = cache[0].extend(cache[1], start, key, value)  # (B, KV, start + T, hd)
        mixed = attend(query, key, value, causal=self.causal, mask=mask)  # (B, H, T, hd)
        # Concatenate the heads and mix them.
        return self.wo(mixed.transpose(1, 2).flatten(2))  # (B, T, dim)
