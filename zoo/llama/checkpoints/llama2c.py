"""llama2.c's `.bin` files (https://github.com/karpathy/llama2.c, export.py version 0, read by its run.c).

Seven int32, then fp32 tensors in the order of `llama2c_shapes`, with the rotary tables before the output matrix. A
positive vocabulary size in the header means that the output matrix is the embedding, a negative one that the output
matrix is the last tensor.
"""

import struct
from math import prod
from pathlib import Path

import numpy as np
import torch

from zoo.errors import UserError
from zoo.files.llama2c_files import HEADER
from zoo.files.regular_files import refuse_larger_than_memory, regular_file
from zoo.layers import RotaryEmbedding
from zoo.llama.checkpoints.names import FORMATS, Weights, llama2c_count, llama2c_shapes
from zoo.llama.model import LlamaConfig

NEWER_MAGIC = b"24ka"  # first bytes of export.py's versions 1 and 2


def read_bin(path: Path) -> tuple[LlamaConfig, Weights]:
    """Settings and weights of a `.bin` file.

    Raises:
        UserError: the file has another format, or its size differs from what its header implies.
    """
    n_bytes = regular_file(path).stat().st_size
    with path.open("rb") as file:
        header = file.read(HEADER.size)
    if header[:4] == NEWER_MAGIC:
        raise UserError(f"{path} is a newer llama2.c export: write it again with llama2.c's export.py --version 0")
    try:
        dim, hidden, layers, heads, kv_heads, vocab, context = HEADER.unpack(header)
        config = LlamaConfig(
            vocab_size=abs(vocab), dim=dim, n_layers=layers, n_heads=heads, n_kv_heads=kv_heads,
            hidden_dim=hidden, max_seq_len=context, tie_embeddings=vocab > 0,
        )  # fmt: skip
    except (struct.error, ValueError):
        raise UserError(f"{path} is not a checkpoint of a known format: give one of {FORMATS}") from None
    n_table_values = context * config.head_dim  # rotary cosines and sines: run.c skips them, and they are skipped here
    size = HEADER.size + 4 * (n_table_values + llama2c_count(config))
    if n_bytes != size:
        # The first bytes of any other file, read as a header, mostly contradict each other or imply a huge model.
        if size > 2**40 > n_bytes:
            raise UserError(f"{path} is not a checkpoint of a known format: give one of {FORMATS}")
        fault = "truncated" if n_bytes < size else "damaged, or of another format"
        raise UserError(
            f"{path} is {fault}: {n_bytes} bytes, where its header as a llama2.c .bin implies {size}; copy it again"
        )
    refuse_larger_than_memory(path)
    content, shapes = path.read_bytes(), llama2c_shapes(config)
    offset, weights = HEADER.size, {}
    for name, shape in shapes.items():
        if name == "output.weight":
            offset += 4 * n_table_values
        array = np.frombuffer(content, "<f4", prod(shape), offset).astype(np.float32)
        weights[name] = torch.from_numpy(array).view(shape)
        offset += 4 * prod(shape)
    return config, weights


def check_bin_can_express(config: LlamaConfig) -> None:
    """Raises UserError if a `.bin` file cannot store these settings."""
    if (config.rope_theta, config.rope_scaling, config.norm_eps) != (10000, None, 1e-5):
        raise UserError(
            "llama2.c's .bin expresses only rope_theta 10000, norm_eps 1e-5 and no rope_scaling: save this model with "
            'format="hf"'
        )


def write_bin(path: Path, config: LlamaConfig, weights: Weights) -> None:
    """Write a `.bin` file that run.c reads."""
    vocab = config.n_rows if config.tie_embeddings else -config.n_rows
    sizes = config.dim, config.ffn_dim, config.n_layers, config.n_heads, config.kv_heads, vocab, config.max_seq_len
    rotary = RotaryEmbedding(config.head_dim, config.max_seq_len)  # to the bit as llama2.c's model.py computes it
    output = [weights["output.weight"]] if not config.tie_embeddings else []
    body = [weights[name] for name in llama2c_shapes(config) if name != "output.weight"]
    with path.open("wb") as file:
        file.write(HEADER.pack(*sizes))
        for tensor in (*body, rotary.cos, rotary.sin, *output):
            file.write(tensor.contiguous().numpy().astype("<f4", copy=False).tobytes())
