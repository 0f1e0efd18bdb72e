"""LlamaDecoder: generates one token at a time with a Llama, using weights laid out for speed.

A decoding step does little arithmetic per weight. Its time is spent reading weights from memory and, in a small model,
dispatching operations. Therefore the step is written three times, as plain functions over tensors:
- eagerly;
- for a CPU, in C (`cpu_step`), where dispatching costs nothing and weights of 8 and 16 bits are widened in registers;
- for a GPU, for torch.compile, which fuses the operations.
They use copies of the weights (`decoder_weights`; in fp32, C uses the weights in place) that
- include the preceding norm: the weight of RMSNorm and the factor sqrt(dim) are multiplied into the columns of the
  matrix, so that the norm reduces to x / sqrt(|x|^2 + dim eps);
- are stored, if wanted, in 8 bits, w = s q with a factor s per row, chosen so that the row's largest |q| is 127;
- are stored in the order of reading: transposed for the eager step, whose matrix-vector product then runs at memory
  bandwidth (row by row, some CPUs reach half of it); not transposed for the other two.
Prompts are evaluated by `Llama.hidden` with a cache; the tests compare all steps with it.
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
from zoo.layers import KVCache
from zoo.layers.rotary import rotate
from zoo.llama.cpu_step import CompilerMissing, CpuStep
from zoo.llama.decoder_weights import Scaled, matrices_of, stacked, transposed


class LlamaDecoder:
    """A `Decoder` for `batch` rows with a key-value cache: call `prefill` with the prompts, then `step` per token.

    Args:
        model: a `zoo.llama.Llama`, which this module does not import because that imports it; its weights are copied,
            except in fp32 with `compile` on a CPU.
        batch: number of rows B.
        max_len: number of columns of the cache, at least that of all tokens read; with `compile` it is rounded up, on a
            CPU to a multiple of 16 and on a GPU to a power of two.
        precision: dtype of the copied weights, "fp32", "bf16" or "int8", which has a quarter of the bytes to read.
            Sums, norms and the cache stay fp32. Without `compile`, weights of 8 bits are widened to fp32 in advance.
        compile: compile the step: on a CPU from C, in a second, once per machine; on a GPU with torch.compile, once per
            process for each model shape, batch size and cache length. If compilation fails, the step runs eagerly,
            with a warning.
    """

    def __init__(self, model: Any, batch: int, max_len: int, precision: str = "fp32", compile: bool = False) -> None:
        self.model, self.dtype = model, dtype_of(precision)
        self.embedding = model.tok_embeddings.weight.detach()  # (V, dim)
        config, device = model.config, self.embedding.device
        self.cpu_step: CpuStep | None = None
        if compile and device.type == "cpu":
            compile = False
            try:
                self.cpu_step = CpuStep(model, batch, max_len, self.dtype)
            except CompilerMissing as error:
                _warn_of_eager_steps(error)
        elif compile:
            max_len = min(config.max_seq_len, max(64, 2 ** math.ceil(math.log2(max_len))))
        # One cache for all layers; `columns` are the positions that masks compare with.
        self.cache = KVCache(
            config.n_layers, batch, config.kv_heads, max_len, config.head_dim, self.embedding.dtype, device
        )
        self.columns = torch.arange(max_len, device=device)  # (S,)
        # sqrt(dim eps), the constant in the reduced norm.
        self.root = torch.tensor((config.dim * config.norm_eps) ** 0.5, dtype=torch.float32, device=device)  # ()
        self.compile = compile
        if self.cpu_step is None:
            self._copy_weights()

    def _copy_weights(self) -> None:
        """Copy the matrices (m, n) of each kind, and the output matrix, each times the norm before it.

        For the eager step, there is one matrix (n, m) per layer; for the compiled one, all layers of a kind are in one
        tensor (L, m, n), because it checks each of its arguments at every call.
        """
        *kinds, [output] = matrices_of(self.model)
        if self.compile:
            self.stacked = [stacked(kind, self.dtype) for kind in kinds]
            matrices, scales = stacked([output], self.dtype)
            self.output: Scaled = matrices[0], None if scales is None else scales[0]
        else:
            self.matrices = [[transposed(weight, norm, self.dtype) for weight, norm in kind] for kind in kinds]
            self.output = transposed(*output, self.dtype), None

    def prefill(self, tokens: Tensor, left_padding: Tensor | None = None) -> Tensor:
        """Logits (B, V) after prompts (B, T), of which the first `left_padding` (B,) columns are padding."""
        self.column, self.left_padding = tokens.shape[1], left_padding
        if self.cpu_step is not None and self.dtype == torch.float32 and self.column == 1:
            # A prompt of one token, as that of a new text, is a step without past.
            self.cpu_step.start([], 0, left_padding)
            return self.cpu_step(tokens[:, 0])
        # The prompt is evaluated in one forward pass, and only its last column predicts the first new token.
        # The layers of a sharded network in mixed precision are bf16, between an embedding and a norm in fp32.
        layer_dtype = next(self.model.layers.parameters()).dtype
        is_mixed = layer_dtype == torch.bfloat16 != self.embedding.dtype
        with evaluating(self.model), torch.autocast(tokens.device.type, torch.bfloat16, enabled=is_mixed):
            hidden = self.model.hidden(tokens, self.cache, left_padding=left_padding)[:, -1]  # (B, dim)
        # The steps continue at the next column, with the cache in fp32 and in the layout that the step reads fastest.
        if self.cpu_step is not None:
            self.cpu_step.start(self.cache.layers, self.column, left_padding)
        else:
            self.past = [layer.float() for layer in self.cache.layers]  # (B, 2, KV, S, hd) each
            if self.compile:
                self.past = [layer.mT.contiguous() for layer in self.past]  # (B, 2, KV, hd, S)
        return F.linear(hidden, self.model.output_weight).float()

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token in each row, tokens (B,)."""
        if self.cpu_step is not None:
            return self.cpu_step(tokens)
        if self.compile:
            try:
                logits = self._compiled_step(tokens)
            except RuntimeError as error:
                _warn_of_eager_steps(error)
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
        return _compiler()(
            tokens, column, left_padding, self.embedding, self.stacked, self.output, self.past, tables, self.columns,
            self.root,
        )  # fmt: skip


def _normed(x: Tensor, root: Tensor) -> Tensor:
    """RMSNorm of x (B, dim) without the factors that the next matrix includes; root is sqrt(dim eps)."""
    return x / torch.hypot(torch.linalg.vector_norm(x, 2, -1, True), root)


def _mixed_mm(x: Tensor, matrix: Tensor) -> Tensor:
    """The product of fp32 x with a matrix of lower precision, in fp32."""
    return torch.mm(x.to(matrix.dtype), matrix).float()


def _warn_of_eager_steps(error: Exception) -> None:
    reason = (str(error).strip().splitlines() or ["no reason given"])[0]
    warnings.warn(f"the decoding step cannot be compiled here, so it runs without --compile: {reason}", stacklevel=4)


@functools.cache
def _compiler() -> Callable[..., Tensor]:
    """The compiled step for a GPU; compilation happens at the first call with new shapes."""
    return torch.compile(_static_step, fullgraph=True, dynamic=False, recompile_limit=64)  # type: ignore[call-overload]  # torch's type hints lack recompile_limit


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
    bias = torch.zeros_like(is_visible, dtype=torch.float32).masked_fill_(~is_visible, -torch.inf)[:, None, None]

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
