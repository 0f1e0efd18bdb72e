"""Parameter names of Llama checkpoints. All file formats are converted from and to llama2.c's names.

llama2.c has one matrix per projection (wq, wk, wv, w1, w3); zoo.llama.Llama fuses those that read the same input (wqkv,
w13). CMU's minllama course uses llama2.c's names except for the attention projections (compute_query instead of wq).
"""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.llama.model import LlamaConfig

Weights = dict[str, Tensor]  # by llama2.c's names
FORMATS = "llama2.c's .bin and .pt, a Hugging Face folder, a checkpoint of the zoo"  # for messages: what can be loaded
LARGEST_TABLE = 2**28  # bytes of a rotary table that any model may have
FUSED = {"attention.wqkv": ("wq", "wk", "wv"), "feed_forward.w13": ("w1", "w3")}  # the model's name -> llama2.c's names
COURSE_NAMES = {f"compute_{word}": f"w{word[0]}" for word in ("query", "key", "value", "output")}
ROTARY_TABLES = ("freqs_cos", "freqs_sin", "rope.freqs")  # stored by some versions of llama2.c; computed here


def llama2c_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by llama2.c's name, in the order of a llama2.c `.bin` file."""
    dim, hidden, kv = config.dim, config.ffn_dim, config.kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm": (dim,),
        "attention.wq": (dim, dim),
        "attention.wk": (kv, dim),
        "attention.wv": (kv, dim),
        "attention.wo": (dim, dim),
        "ffn_norm": (dim,),
        "feed_forward.w1": (hidden, dim),
        "feed_forward.w2": (dim, hidden),
        "feed_forward.w3": (hidden, dim),
    }
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (config.n_rows, dim)}
    shapes |= {f"layers.{i}.{name}.weight": layer[name] for name in layer for i in range(config.n_layers)}
    shapes["norm.weight"] = (dim,)
    if not config.tie_embeddings:
        shapes["output.weight"] = (config.n_rows, dim)
    return shapes


def llama2c_count(config: LlamaConfig) -> int:
    """The number of values in all tensors of `llama2c_shapes`, without a list of them, which may be long."""
    outside = llama2c_shapes(replace(config, n_layers=1))
    layer = sum(prod(shape) for name, shape in outside.items() if name.startswith("layers."))
    return sum(map(prod, outside.values())) + (config.n_layers - 1) * layer


def check_layers(config: LlamaConfig, weights: Weights, path: Path) -> None:
    """Compare the settings with the tensors in a file, before anything is built from the settings.

    Raises:
        UserError: the tensors are of other layers than the settings say, are not of floating-point type, or are too
            small for the context.
    """
    layers = {name.split(".")[1] for name in weights if name.startswith("layers.")}
    if len(layers) != config.n_layers:
        raise UserError(
            f"{path} has tensors of {len(layers)} layers, but its settings say {config.n_layers}: give another file"
        )
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise UserError(f"{path}: tensor {name} is of type {tensor.dtype}: give a file of floating-point weights")
    # The rotary table is the only large tensor that no file stores.
    size = 4 * sum(tensor.numel() for tensor in weights.values())
    if 4 * config.max_seq_len * config.head_dim > size + LARGEST_TABLE:
        raise UserError(
            f"{path} declares a context of {config.max_seq_len} tokens, too many for its size; it is damaged"
        )


def fuse_projections(weights: Weights, config: LlamaConfig) -> Weights:
    """llama2.c's tensors as a state_dict of zoo.llama.Llama: wq, wk, wv become wqkv, and w1, w3 become w13."""
    weights = dict(weights)
    for i in range(config.n_layers):
        for fused, names in FUSED.items():
            block = f"layers.{i}.{fused.split('.')[0]}"
            weights[f"layers.{i}.{fused}.weight"] = torch.cat([weights.pop(f"{block}.{name}.weight") for name in names])
    return weights


def split_projections(state: Mapping[str, Tensor], config: LlamaConfig) -> Weights:
    """A state_dict of zoo.llama.Llama by llama2.c's names, in fp32 on the CPU.

    Tensors that already have llama2.c's names keep them. A fused tensor of an unexpected size also keeps its name, so
    that the caller's comparison of names reports it.
    """
    weights = {name: tensor.detach().float().cpu() for name, tensor in state.items()}
    kv = config.kv_heads * config.head_dim
    rows = {"wq": config.dim, "wk": kv, "wv": kv, "w1": config.ffn_dim, "w3": config.ffn_dim}
    for i in range(config.n_layers):
        for fused, names in FUSED.items():
            matrix = weights.get(f"layers.{i}.{fused}.weight")
            sizes = [rows[name] for name in names]
            if matrix is not None and len(matrix) == sum(sizes):
                del weights[f"layers.{i}.{fused}.weight"]
                block = f"layers.{i}.{fused.split('.')[0]}"
                for name, tensor in zip(names, matrix.split(sizes), strict=True):
                    weights[f"{block}.{name}.weight"] = tensor
    return weights


def strip_prefixes(state: Mapping[str, Any], prefix: str) -> Weights:
    """The tensors whose names start with `prefix`, without it and without torch.compile's `_orig_mod.`.

    The course's names become llama2.c's; rotary tables are dropped.
    """
    weights = {}
    for name, tensor in state.items():
        name = name.replace("_orig_mod.", "")
        if isinstance(tensor, Tensor) and name.startswith(prefix) and not name.endswith(ROTARY_TABLES):
            name = name.removeprefix(prefix)
            for course_name, llama2c_name in COURSE_NAMES.items():
                name = name.replace(course_name, llama2c_name)
            weights[name] = tensor
    return weights
