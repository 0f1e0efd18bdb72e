"""LlamaDecoder: generates one token at a time with a Llama, using weights laid out for speed.

A decoding step does little arithmetic per weight. Its time is spent reading weights from memory and, in a small model,
dispatching operations. Therefore the step is written as plain functions over tensors, with copies of the weights that
- include the preceding norm: the weight of RMSNorm and the factor sqrt(dim) are multiplied into the columns of the
  matrix, so that the norm reduces to x / sqrt(|x|^2 + dim eps);
- are stored, if wanted, in 8 bits, w = s q with a factor s per row, chosen so that the row's largest |q| is 127;
- are stored in the order of reading: transposed for the eager step, whose matrix-vector product then runs at memory
  bandwidth (row by row, some CPUs reach half of it); not transposed for the compiled step, whose product is a reduction
  that inductor fuses and that widens bf16 and 8 bits in registers.
Prompts are evaluated by `Llama.hidden` with a cache; the tests compare both steps with it.
"""

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.generation.decoders import dtype_of, evaluating
from zoo.layers import KVCache, RMSNorm
from zoo.layers.rotary import rotate

Scaled = tuple[Tensor, Tensor | None]  # matrices (m, n) or (L, m, n), and in 8 bits the factors (m,) or (L, m) of rows
BLOCK_ROWS = 512  # of a matrix that are copied at a time


class LlamaDecoder:
    """A `Decoder` for `batch` rows with a key-value cache: call `prefill` with the prompts, then `step` per token.

    Args:
        model: a `zoo.llama.Llama`, which this module does not import because that imports it; its weights are copied.
        batch: number of rows B.
        max_len: number of columns of the cache, at least that of all tokens read; with `compile` it is rounded up to a
            power of two.
        precision: dtype of the copied weights, "fp32", "bf16" or "int8", which has a quarter of the bytes to read.
            Sums, norms and the cache stay fp32. Without `compile`, weights of 8 bits are widened to fp32 in advance.
        compile: compile the step, once per process for each model shape, batch size and cache length. If compilation
            fails, a warning says so and the step runs eagerly.
    """

    def __init__(self, model: Any, batch: int, max_len: int, precision: str = "fp32", compile: bool = False) -> None:
        self.model, self.dtype = model, dtype_of(precision)
        self.embedding = model.tok_embeddings.weight.detach()  # (V, dim)
        config, device = model.config, self.embedding.device
        if compile:
            max_len = min(config.max_seq_len, max(64, 2 ** math.ceil(math.log2(max_len))))
        # One cache for all layers; `columns` are the positions that masks compare with.
        self.cache = KVCache(
            config.n_layers, batch, config.kv_heads, max_len, config.head_dim, self.embedding.dtype, device
        )
        self.columns = torch.arange(max_len, device=device)  # (S,)
        # sqrt(dim eps), the constant in the reduced norm.
        self.root = torch.tensor((config.dim * config.norm_eps) ** 0.5, device=device)  # ()
        self.compile = compile
        self._copy_weights()

    def _copy_weights(self) -> None:
        """Copy the matrices (m, n) of each kind, and the output matrix, each times the norm before it.

        For the eager step, there is one matrix (n, m) per layer; for the compiled one, all layers of a kind are in one
        tensor (L, m, n), because it checks each of its arguments at every call.
        """
        # wqkv and w13 read normalized input; wo and w2 do not.
        layers = self.model.layers
        kinds: list[list[tuple[Tensor, RMSNorm | None]]] = [
            [(layer.attention.wqkv.weight, layer.attention_norm) for layer in layers],
            [(layer.attention.wo.weight, None) for layer in layers],
            [(layer.feed_forward.w13.weight, layer.ffn_norm) for layer in layers],
            [(layer.feed_forward.w2.weight, None) for layer in layers],
        ]
        output = self.model.output_weight, self.model.norm
        if self.compile:
            self.stacked = [_stacked(kind, self.dtype) for kind in kinds]
            matrices, scales = _stacked([output], self.dtype)
            self.output: Scaled = matrices[0], None if scales is None else scales[0]
        else:
            self.matrices = [[_transposed(weight, norm, self.dtype) for weight, norm in kind] for kind in kinds]
            self.output = _transposed(*output, self.dtype), None

    def prefill(self, tokens: Tensor, left_padding: Tensor | None = None) -> Tensor:
        """Logits (B, V) after prompts (B, T), of which the first `left_padding` (B,) columns are padding."""
        # The prompt is evaluated in one forward pass, and only its last column predicts the first new token.
        # The layers of a sharded network in mixed precision are bf16, between an embedding and a norm in fp32.
        layer_dtype = next(self.model.layers.parameters()).dtype
        is_mixed = layer_dtype == torch.bfloat16 != self.embedding.dtype
        with evaluating(self.model), torch.autocast(tokens.device.type, torch.bfloat16, enabled=is_mixed):
            hidden = self.model.hidden(tokens, self.cache, left_padding=left_padding)[:, -1]  # (B, dim)
        # The steps continue at the next column, with the cache in fp32 and in the layout that the step reads fastest.
        self.column, self.left_padding = tokens.shape[1], left_padding
        self.past = [layer.float() for layer in self.cache.layers]  # (B, 2, KV, S, hd) each
        if self.compile:
            self.past = [layer.mT.contiguous() for layer in self.past]  # (B, 2, KV, hd, S)
        return F.linear(hidden, self.model.output_weight).float()

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token in each row, tokens (B,)."""
        if self.compile:
            try:
                logits = self._compiled_step(tokens)
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"torch.compile fails here, so decoding is not compiled: {reason}", stacklevel=2)
                # Continue eagerly, with cache and weights in the eager step's layout.
                self.compile = False
                self.past = [layer.mT.contiguous() for layer in self.past]
                self._copy_weights()
        if not self.compile:
            logits = self._eager_step(tokens)
        self.column += 1
        return logits

    def _eager_step(self, tokens: Tensor) -> Tensor:
        config, column, end = self.model.config, self.column, self.column + 1
        batch, head_dim, kv_heads = len(tokens), config.head_dim, config.kv_heads
        query_size = config.n_heads * head_dim
        product = _mixed_mm if self.dtype == torch.bfloat16 else torch.mm
        # Positions count from each row's first token, and padding columns are masked.
        position: int | Tensor = column
        mask = None
        if self.left_padding is not None:
            position = column - self.left_padding  # (B,)
            mask = (self.columns[:end] >= self.left_padding[:, None])[:, None, None]  # (B, 1, 1, end)
        # A rotation by the angle a is multiplication by cos a + i sin a of a pair read as a complex number.
        rotary = self.model.rotary
        rotation = torch.complex(rotary.cos[position], rotary.sin[position])  # (hd/2,) or (B, hd/2)
        # One factor per pair of q and k, and 1 for v: a single in-place multiplication rotates all heads.
        rotations = rotation.new_ones(batch, config.n_heads + 2 * kv_heads, head_dim // 2)
        rotations[:, :-kv_heads] = rotation.view(-1, 1, head_dim // 2)
        # The residual stream of the new token.
        x = self.embedding[tokens].float()  # (B, dim)
        for wqkv, wo, w13, w2, past in zip(*self.matrices, self.past, strict=True):
            # Project and rotate; keys and values of the new column go to the cache.
            qkv = product(_normed(x, self.root), wqkv)  # (B, (H + 2 KV) hd)
            torch.view_as_complex(qkv.view(batch, -1, head_dim // 2, 2)).mul_(rotations)
            past.select(3, column).copy_(qkv[:, query_size:].view(batch, 2, kv_heads, head_dim))
            # Attend; the queries of the H / KV heads that share a key head form its query positions.
            key, value = past.narrow(3, 0, end).unbind(1)  # (B, KV, end, hd)
            query = qkv[:, :query_size].view(batch, kv_heads, -1, head_dim)  # (B, KV, H / KV, hd)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            x = x + product(mixed.reshape(batch, query_size), wo)
            # Feed-forward.
            gate, up = product(_normed(x, self.root), w13).chunk(2, -1)  # (B, hidden)
            x = x + product(F.silu(gate) * up, w2)
        # The output matrix includes the final norm.
        return product(_normed(x, self.root), self.output[0])

    def _compiled_step(self, tokens: Tensor) -> Tensor:
        left_padding = torch.zeros_like(tokens) if self.left_padding is None else self.left_padding
        tables = self.model.rotary.cos, self.model.rotary.sin
        column = self.columns[self.column, None]  # (1,): a tensor, because an int would be compiled as a constant
        return _compiler(tokens.device.type)(
            tokens, column, left_padding, self.embedding, self.stacked, self.output, self.past, tables, self.columns,
            self.root,
        )  # fmt: skip


def _normed(x: Tensor, root: Tensor) -> Tensor:
    """RMSNorm of x (B, dim) without the factors that the next matrix includes; root is sqrt(dim eps)."""
    return x / torch.hypot(torch.linalg.vector_norm(x, 2, -1, True), root)


def _mixed_mm(x: Tensor, matrix: Tensor) -> Tensor:
    """The product of fp32 x with a matrix of lower precision, in fp32."""
    return torch.mm(x.to(matrix.dtype), matrix).float()


def _with_norm(weight: Tensor, norm: RMSNorm | None) -> Tensor:
    """A matrix (m, n) in fp32, whose columns, one for each input, are multiplied by the factors of the norm."""
    matrix = weight.detach().float()
    return matrix if norm is None else matrix * (norm.weight.detach().float() * len(norm.weight) ** 0.5)


def _in_8_bits(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers (m, n) from -127 to 127, in fp32, and the factors (m,) by which they give the matrix."""
    scale = matrix.abs().amax(1) / 127
    return (matrix / scale.clamp(min=torch.finfo(matrix.dtype).tiny)[:, None]).round_(), scale


def _transposed(weight: Tensor, norm: RMSNorm | None, dtype: torch.dtype) -> Tensor:
    """A matrix (n, m) for the eager step; in fp32 for weights of 8 bits."""
    matrix = _with_norm(weight, norm)
    if dtype == torch.int8:
        numbers, scale = _in_8_bits(matrix)
        matrix, dtype = numbers * scale[:, None], torch.float32
    return matrix.T.contiguous().to(dtype)


def _stacked(kind: Sequence[tuple[Tensor, RMSNorm | None]], dtype: torch.dtype) -> Scaled:
    """The matrices (L, m, n) of all layers, and in 8 bits the factors (L, m) of their rows, for the compiled step."""
    shape, device = kind[0][0].shape, kind[0][0].device
    stack = torch.empty(len(kind), *shape, dtype=dtype, device=device)
    scales = torch.empty(len(kind), shape[0], device=device) if dtype == torch.int8 else None
    for number, (weight, norm) in enumerate(kind):
        # Some rows at a time, so that what is computed in between stays in a CPU's cache.
        for start in range(0, shape[0], BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            matrix = _with_norm(weight[part], norm)
            if scales is not None:
                matrix, scales[number, part] = _in_8_bits(matrix)
            stack[number, part] = matrix
    return stack, scales


@functools.cache
def _compiler(device: str) -> Callable[..., Tensor]:
    """The compiled step for "cpu" or "cuda"; compilation happens at the first call with new shapes."""
    options = {
        # On a CPU, a small model's step is mostly inductor's Python wrapper: in C++, the step is a third faster.
        "cpp_wrapper": device == "cpu",
        "cpp.enable_floating_point_contract_flag": "fast",  # fused multiply-add
    }
    return torch.compile(  # type: ignore[call-overload]  # torch's type hints lack recompile_limit
        _static_step, fullgraph=True, dynamic=False, recompile_limit=64, options=options
    )


def _static_step(
    tokens: Tensor,
    column: Tensor,
    left_padding: Tensor,
    embedding: Tensor,
    matrices: Sequence[Scaled],
    output: Scaled,
    past: list[Tensor],
    tables: tuple[Tensor, Tensor],
    columns: Tensor,
    root: Tensor,
) -> Tensor:
    """The eager step with shapes that do not depend on `column` (1,): later columns of the cache are masked instead.

    The cache's columns are its last axis, past (B, 2, KV, hd, S), so that both sums over it read consecutive memory.
    """
    # Angles of each row's position, and a bias that hides padding and columns that are not filled yet.
    batch, _, kv_heads, head_dim, _ = past[0].shape
    heads = matrices[0][0].shape[1] // head_dim - 2 * kv_heads
    cos, sin = (table[column - left_padding][:, None] for table in tables)  # (B, 1, hd/2)
    is_visible = (columns <= column) & (columns >= left_padding[:, None])  # (B, S)
    bias = torch.where(is_visible, 0.0, -torch.inf)[:, None, None]  # (B, 1, 1, S)

    def product(x: Tensor, scaled: Scaled) -> Tensor:
        matrix, scale = scaled
        if batch > 1:
            wide = torch.float32 if scale is not None else matrix.dtype
            out = F.linear(x.to(wide), matrix.to(wide)).float()
        else:
            # expand instead of broadcasting: inductor then stores x, where it would compute it again for each row.
            out = (matrix.float() * x.expand(matrix.shape)).sum(-1)[None]
        return out if scale is None else out * scale

    def of_normed(x: Tensor, scaled: Scaled) -> Tensor:
        # The norm is a factor of the product: before it, inductor would compute it again for every row of the matrix.
        return product(x, scaled) * torch.rsqrt((x * x).sum(-1, keepdim=True) + root * root)

    x = embedding[tokens].float()  # (B, dim)
    by_layer = [zip(matrix, repeat(None) if scale is None else scale) for matrix, scale in matrices]  # noqa: B905
    for wqkv, wo, w13, w2, kv in zip(*by_layer, past, strict=True):
        # Project and rotate; keys and values of the new column go to the cache.
        qkv = of_normed(x, wqkv).view(batch, -1, head_dim)
        query, key, value = qkv.split((heads, kv_heads, kv_heads), 1)  # (B, H or KV, hd)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        kv.index_copy_(4, column, torch.stack((key, value), 1)[..., None])
        # Attend: softmax(q k^T / sqrt(hd) + bias) v, as products and sums that inductor fuses.
        keys, values = kv.unsqueeze(3).unbind(1)  # (B, KV, 1, hd, S)
        query = query.view(batch, kv_heads, -1, head_dim, 1)  # (B, KV, H / KV, hd, 1)
        scores = (query * keys).sum(-2) * head_dim**-0.5 + bias  # (B, KV, H / KV, S)
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        mixed = (weights.unsqueeze(-2) * values).sum(-1) / weights.sum(-1, keepdim=True)  # (B, KV, H / KV, hd)
        x = x + product(mixed.reshape(batch, -1), wo)
        # Feed-forward: w2 (silu(gate) * up).
        gate, up = of_normed(x, w13).chunk(2, -1)  # (B, hidden)
        x = x + product(F.silu(gate) * up, w2)
    return of_normed(x, output)
