"""One token at a time through a Llama: model.py's arithmetic, laid out for speed.

A decoding step does little with each weight, so its time goes into reading memory and, in a small model, into
dispatching operations. Hence plain functions over tensors, and copies of the weights that
- carry the norm in front of them: RMSNorm's weight and sqrt(dim) are multiplied into the columns, which leaves
  x / sqrt(|x|^2 + dim eps) to do;
- lie as they are read: transposed for the eager step, whose matrix-vector product then runs at the memory's
  speed (on some CPUs it reaches half of it by rows); by rows for the compiled step, whose product is a
  reduction that inductor fuses and that widens bf16 in registers.
`Llama.hidden` with a cache is what both are tested against, and what a prompt goes through.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.generation.decoders import dtype_of, evaluating
from zoo.layers import KVCache, RMSNorm
from zoo.layers.rotary import rotate
from zoo.llama.model import Llama

Matrices = Sequence[Sequence[Tensor] | Tensor]  # wqkv, wo, w13, w2, each by layer


class Decoder:
    """A model laid out for decoding `batch` rows over a cache of `max_len` columns.

    First `prefill` with the prompts, then `step` with each token. precision "bf16" halves the bytes of weights
    to be read; sums, norms and the cache stay fp32. compile=True compiles the step, once in a process for each
    model shape, batch and length (rounded up to a power of two); where that fails a warning says so and the
    step is eager.
    """

    def __init__(
        self, model: Llama, batch: int, max_len: int, precision: str = "fp32", compile: bool = False
    ) -> None:
        self.model, self.dtype = model, dtype_of(precision)
        self.embedding = model.tok_embeddings.weight.detach()
        config, device = model.config, self.embedding.device
        if compile:
            max_len = min(config.max_seq_len, max(64, 2 ** math.ceil(math.log2(max_len))))
        self.cache = KVCache(
            config.n_layers, batch, config.kv_heads, max_len, config.head_dim, self.embedding.dtype, device
        )
        self.columns = torch.arange(max_len, device=device)
        self.root = torch.tensor((config.dim * config.norm_eps) ** 0.5, device=device)
        self.compile = compile
        self.matrices, self.output = _layout(model, self.dtype, transposed=not compile)

    def prefill(self, tokens: Tensor, left_padding: Tensor | None = None) -> Tensor:
        """Logits (B, V) after prompts (B, T), of which the first `left_padding` (B,) columns are padding."""
        with evaluating(self.model):
            hidden = self.model.hidden(tokens, self.cache, left_padding=left_padding)[:, -1]  # (B, dim)
        self.column, self.left_padding = tokens.shape[1], left_padding
        self.past = [layer.float() for layer in self.cache.layers]  # (B, 2, KV, max_len, hd) each
        if self.compile:
            self.past = [layer.mT.contiguous() for layer in self.past]  # (B, 2, KV, hd, max_len)
        return F.linear(hidden, self.model.output_weight).float()

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token in each row, tokens (B,)."""
        if self.compile:
            try:
                logits = self._compiled(tokens)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"torch.compile fails here, so decoding is not compiled: {reason}", stacklevel=2)
                self.compile = False
                self.past = [layer.mT.contiguous() for layer in self.past]
                self.matrices, self.output = _layout(self.model, self.dtype, transposed=True)
        if not self.compile:
            logits = self._eager(tokens)
        self.column += 1
        return logits

    def _eager(self, tokens: Tensor) -> Tensor:
        config, column, end = self.model.config, self.column, self.column + 1
        batch, head_dim, kv_heads = len(tokens), config.head_dim, config.kv_heads
        split = config.n_heads * head_dim
        product = torch.mm if self.dtype == torch.float32 else _mixed_mm
        at: int | Tensor = column
        mask = None
        if self.left_padding is not None:
            at = column - self.left_padding  # (B,)
            mask = (self.columns[:end] >= self.left_padding[:, None])[:, None, None]  # (B, 1, 1, end)
        turn = torch.complex(self.model.rotary.cos[at], self.model.rotary.sin[at])  # (hd/2,) or (B, hd/2)
        # One factor for each pair of q and k, and 1 for v: one multiplication rotates them all in place.
        turns = turn.new_ones(batch, config.n_heads + 2 * kv_heads, head_dim // 2)
        turns[:, :-kv_heads] = turn.view(-1, 1, head_dim // 2)
        x = self.embedding[tokens].float()  # (B, dim)
        for wqkv, wo, w13, w2, past in zip(*self.matrices, self.past, strict=True):
            qkv = product(_normed(x, self.root), wqkv)  # (B, (H + 2 KV) hd)
            torch.view_as_complex(qkv.view(batch, -1, head_dim // 2, 2)).mul_(turns)
            past.select(3, column).copy_(qkv[:, split:].view(batch, 2, kv_heads, head_dim))
            key, value = past.narrow(3, 0, end).unbind(1)  # (B, KV, end, hd)
            query = qkv[:, :split].view(batch, kv_heads, -1, head_dim)  # (B, KV, H / KV, hd)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            x = x + product(mixed.reshape(batch, split), wo)
            gate, up = product(_normed(x, self.root), w13).chunk(2, -1)  # (B, hidden)
            x = x + product(F.silu(gate) * up, w2)
        return product(_normed(x, self.root), self.output)

    def _compiled(self, tokens: Tensor) -> Tensor:
        left_padding = torch.zeros_like(tokens) if self.left_padding is None else self.left_padding
        tables = self.model.rotary.cos, self.model.rotary.sin
        here = self.columns[self.column, None]  # (1,): a tensor, for an int would be compiled in
        return _compiler(tokens.device.type)(
            tokens, here, left_padding, self.embedding, self.matrices, self.output, self.past, tables, self.columns, self.root
        )


def _normed(x: Tensor, root: Tensor) -> Tensor:
    """RMSNorm of x (B, dim) without what the next matrix carries; root is sqrt(dim eps)."""
    return x / torch.hypot(torch.linalg.vector_norm(x, 2, -1, True), root)


def _mixed_mm(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.mm(x.to(matrix.dtype), matrix).float()


def _layout(model: Llama, dtype: torch.dtype, transposed: bool) -> tuple[Matrices, Tensor]:
    """Copies of the matrices (m, n) by kind and layer, or transposed, with the norm before each multiplied in."""

    def laid(linear: Tensor, norm: RMSNorm | None = None) -> Tensor:
        matrix = linear.detach().float()
        if transposed:
            matrix = matrix.T.contiguous()  # (n, m)
        if norm is not None:
            carried = norm.weight.detach().float() * len(norm.weight) ** 0.5
            matrix = matrix * (carried[:, None] if transposed else carried)
        return matrix.to(dtype)

    layers: Any = model.layers
    kinds = (
        [laid(layer.attention.wqkv.weight, layer.attention_norm) for layer in layers],
        [laid(layer.attention.wo.weight) for layer in layers],
        [laid(layer.feed_forward.w13.weight, layer.ffn_norm) for layer in layers],
        [laid(layer.feed_forward.w2.weight) for layer in layers],
    )
    output = laid(model.output_weight, model.norm)
    # The compiled step checks each argument at every call, so it gets few: all layers of a kind in one tensor.
    return kinds if transposed else [torch.stack(kind) for kind in kinds], output


@functools.cache
def _compiler(device: str) -> Callable[..., Tensor]:
    # On a CPU the step of a small model is mostly inductor's own Python: written in C++, it is a third faster.
    return torch.compile(  # type: ignore[call-overload]  # torch's types do not know recompile_limit yet
        _static_step, fullgraph=True, dynamic=False, recompile_limit=64, options={"cpp_wrapper": device == "cpu"}
    )


def _static_step(
    tokens: Tensor,
    column: Tensor,
    left_padding: Tensor,
    embedding: Tensor,
    matrices: Matrices,
    output: Tensor,
    past: list[Tensor],
    tables: tuple[Tensor, Tensor],
    columns: Tensor,
    root: Tensor,
) -> Tensor:
    """The eager step with shapes that do not depend on the column, (1,): unseen columns of the cache are masked.

    The cache's columns are its last axis, past (B, 2, KV, hd, S), so that both sums over it run along memory.
    """
    batch, _, kv_heads, head_dim, _ = past[0].shape
    heads = matrices[0][0].shape[0] // head_dim - 2 * kv_heads
    cos, sin = (table[column - left_padding][:, None] for table in tables)  # (B, 1, hd/2)
    seen = (columns <= column) & (columns >= left_padding[:, None])  # (B, S)
    bias = torch.where(seen, 0.0, -torch.inf)[:, None, None]  # (B, 1, 1, S)

    def product(x: Tensor, matrix: Tensor) -> Tensor:
        if batch > 1:
            return F.linear(x.to(matrix.dtype), matrix).float()
        # expand, not broadcasting: it has inductor store x rather than compute it again for each row.
        return (matrix * x.expand(matrix.shape)).sum(-1)[None]

    def normed(x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + root * root)

    x = embedding[tokens].float()  # (B, dim)
    for wqkv, wo, w13, w2, kv in zip(*matrices, past, strict=True):
        qkv = product(normed(x), wqkv).view(batch, -1, head_dim)
        query, key, value = qkv.split((heads, kv_heads, kv_heads), 1)  # (B, H or KV, hd)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        kv.index_copy_(4, column, torch.stack((key, value), 1)[..., None])
        keys, values = kv.unsqueeze(3).unbind(1)  # (B, KV, 1, hd, S)
        query = query.view(batch, kv_heads, -1, head_dim, 1)  # (B, KV, H / KV, hd, 1)
        scores = (query * keys).sum(-2) * head_dim**-0.5 + bias  # (B, KV, H / KV, S)
        mixed = (scores.softmax(-1).unsqueeze(-2) * values).sum(-1)  # (B, KV, H / KV, hd)
        x = x + product(mixed.reshape(batch, -1), wo)
        gate, up = product(normed(x), w13).chunk(2, -1)
        x = x + product(F.silu(gate) * up, w2)
    return product(normed(x), output)
