"""CpuStep: decoding steps of a Llama by the library of step.c, with a key-value cache."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, addressof, c_float, c_int64, c_void_p
from typing import Any

import torch
from torch import Tensor

from zoo.console.threads import available_cores
from zoo.layers import RMSNorm
from zoo.llama.cpu_step.library import load_library
from zoo.llama.decoder_weights import matrices_of, norm_factors, stacked

LANES = 16  # floats in the longest vector of step.c; the number of the cache's columns is a multiple of it
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
FP32: Any = {"dtype": torch.float32, "device": "cpu"}  # of new tensors, whatever torch's defaults are


class _Matrix(Structure):
    _fields_ = [(name, c_void_p) for name in ("values", "scale", "norm")]


class _Layer(Structure):
    _fields_ = [*((name, _Matrix) for name in ("qkv", "out", "w13", "w2")), ("past", c_void_p)]


_COUNTS = (
    "type", "batch", "dim", "n_layers", "heads", "kv_heads", "head_dim", "hidden", "rows", "columns", "threads"
)  # fmt: skip
_POINTERS = ("embedding", "cos", "sin", "x", "normed", "qkv", "mixed", "ffn", "gated", "scores")


class _Decoder(Structure):
    _fields_ = [
        *((name, c_int64) for name in _COUNTS),
        ("root", c_float),
        ("layers", POINTER(_Layer)),
        ("output", _Matrix),
        *((name, c_void_p) for name in _POINTERS),
    ]


def _threads() -> int:
    """torch's number of threads, at most one per core: more would wait for each other after every product."""
    return min(torch.get_num_threads(), available_cores())


class CpuStep:
    """Decoding steps of a Llama on a CPU: `start` with the keys and values of the prompts, then a call per token.

    Args:
        model: a `zoo.llama.Llama` on a CPU. fp32 weights are used in place, others are copied.
        batch: number of rows B.
        max_len: columns of the cache, prompt included; at most the model's context.
        dtype: dtype of the weights: torch.float32, torch.bfloat16 or torch.int8. Sums and the cache are fp32.

    Raises:
        CompilerMissing: step.c cannot be compiled here.
        TypeError: a weight is not an ordinary tensor on the CPU.
    """

    def __init__(self, model: Any, batch: int, max_len: int, dtype: torch.dtype) -> None:
        library = load_library()
        assert library.decoder_size() == ctypes.sizeof(_Decoder), "the structures of step.c and step.py differ"
        self.function = library.decode_step
        self.config, self.batch, self.max_len = model.config, batch, min(max_len, model.config.max_seq_len)
        self.tensors: list[Tensor] = []  # whose memory the library uses
        self.decoder = self._describe(model, dtype)

    def _describe(self, model: Any, dtype: torch.dtype) -> _Decoder:
        """The structure that step.c reads."""
        config, batch = self.config, self.batch
        columns = -(-self.max_len // LANES) * LANES
        kv_size, n_layers = config.kv_heads * config.head_dim, config.n_layers
        self.past = torch.zeros(n_layers, batch, 2, config.kv_heads, config.head_dim, columns, **FP32)
        *kinds, [output] = (self._matrices(kind, dtype) for kind in matrices_of(model))
        layers = (_Layer * n_layers)(
            *(_Layer(*matrices, past.data_ptr()) for *matrices, past in zip(*kinds, self.past, strict=True))
        )
        counts = (
            TYPES[dtype], batch, config.dim, n_layers, config.n_heads, config.kv_heads, config.head_dim,
            config.ffn_dim, config.n_rows, columns, _threads(),
        )  # fmt: skip
        tables = [
            self._pointer(table, torch.float32)
            for table in (model.tok_embeddings.weight, model.rotary.cos, model.rotary.sin)
        ]
        sizes = (
            batch * config.dim,  # x
            batch * config.dim,  # normed
            batch * (config.dim + 2 * kv_size),  # qkv
            batch * config.dim,  # mixed
            batch * 2 * config.ffn_dim + LANES,  # ffn
            batch * config.ffn_dim + LANES,  # gated
            batch * config.n_heads * columns,  # scores
        )
        buffers = [self._pointer(torch.zeros(size, **FP32), torch.float32) for size in sizes]
        return _Decoder(*counts, config.dim * config.norm_eps, layers, output, *tables, *buffers)

    def _matrices(self, kind: Sequence[tuple[Tensor, RMSNorm | None]], dtype: torch.dtype) -> list[_Matrix]:
        """The matrices of one kind: in fp32 the model's own, otherwise copies that include their norms."""
        if dtype == torch.float32:
            factors = [None if norm is None else self._pointer(norm_factors(norm), dtype) for _, norm in kind]
            weights = [self._pointer(weight, dtype) for weight, _ in kind]
            return [_Matrix(weight, None, factor) for weight, factor in zip(weights, factors, strict=True)]
        values, scales = stacked(kind, dtype)
        factors = [None] * len(kind) if scales is None else [self._pointer(scale, torch.float32) for scale in scales]
        return [_Matrix(self._pointer(value, dtype), scale) for value, scale in zip(values, factors, strict=True)]

    def _pointer(self, tensor: Tensor, dtype: torch.dtype) -> int:
        """The address of a tensor's elements in a dtype, contiguous, which are kept as long as this object.

        Raises:
            TypeError: the elements are not in the CPU's memory.
        """
        tensor = tensor.detach().to(dtype).contiguous()
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise TypeError(f"a step in C needs dense tensors on the CPU, not {tensor.layout} on {tensor.device}")
        self.tensors.append(tensor)
        return tensor.data_ptr()

    def start(self, layers: Sequence[Tensor], column: int, left_padding: Tensor | None) -> None:
        """Continue after the first `column` columns of a cache, one tensor (B, 2, KV, S, hd) per layer.

        Args:
            layers: keys and values, which are copied; may be empty if `column` is 0.
            column: number of columns that are filled.
            left_padding: (B,) number of columns on the left that are padding; None: none.
        """
        if left_padding is None:
            left_padding = torch.zeros(self.batch, dtype=torch.int64, device="cpu")
        self.left_padding = self._indices(left_padding, "numbers of padding columns", column)
        if column > self.max_len:
            raise IndexError(f"a cache of {self.max_len} columns cannot hold {column}")
        for past, layer in zip(self.past, layers, strict=column > 0):
            past[..., :column] = layer[:, :, :, :column].mT
        self.column = column

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) in fp32 after one more token in each row, tokens (B,).

        Raises:
            IndexError: the cache is full, there is not one token for each row, or a token is outside the vocabulary.
        """
        if self.column >= self.max_len:
            raise IndexError(f"a cache of {self.max_len} columns is full")
        tokens = self._indices(tokens, "tokens", self.config.n_rows - 1)
        logits = torch.empty(self.batch, self.config.n_rows, **FP32)
        self.function(
            addressof(self.decoder), tokens.data_ptr(), self.left_padding.data_ptr(), self.column, logits.data_ptr()
        )
        self.column += 1
        return logits

    def _indices(self, numbers: Tensor, name: str, largest: int) -> Tensor:
        """A number for each row (B,) as the library reads it: in int64, contiguous, on the CPU.

        Raises:
            IndexError: there is not one number for each row, or one is not from 0 to `largest`.
        """
        numbers = numbers.to("cpu", torch.int64).contiguous()
        if numbers.shape != (self.batch,) or not all(0 <= number <= largest for number in numbers.tolist()):
            raise IndexError(f"{name} must be {self.batch}, each from 0 to {largest}")
        return numbers
