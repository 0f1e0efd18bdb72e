"""Hugging Face folders of a Llama: config.json with model.safetensors, or with shards and their index.

Differences from llama2.c's format: parameter names; the order of the rows of q and k, because rotary pairs are
(x[i], x[i + hd/2]) instead of adjacent elements; the place of the rotary settings, which transformers 5 changed.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from zoo.errors import UserError
from zoo.files.safetensors_files import read_safetensors
from zoo.llama.checkpoints.hugging_face_config import check_sizes, read_config
from zoo.llama.checkpoints.names import Weights
from zoo.llama.checkpoints.safetensors_files import weight_files
from zoo.llama.model import SCALING_KEYS, LlamaConfig

TO_HUGGING_FACE = {  # llama2.c's name, without the layer's number -> Hugging Face's
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}
TO_LLAMA2C = {hugging_face: llama2c for llama2c, hugging_face in TO_HUGGING_FACE.items()}


def read_folder(folder: Path) -> tuple[LlamaConfig, Weights]:
    """Settings and weights of a folder.

    Raises:
        UserError: the folder holds another model, or a file is missing or damaged.
    """
    config = read_config(folder / "config.json")
    weights: Weights = {}
    shards = weight_files(folder)
    check_sizes(folder / "config.json", config, sum(shard.stat().st_size for shard in shards))
    for shard in shards:
        for name, tensor in read_safetensors(shard).items():
            if name.endswith("rotary_emb.inv_freq"):  # a table that old versions of transformers stored
                continue
            original, name, tensor = name, _translated(name, TO_LLAMA2C), tensor.float()
            if name in weights:
                raise UserError(f"{shard} holds a second tensor for {original}: remove the superfluous one")
            weights[name] = _to_adjacent_pairs(tensor, config.head_dim) if _is_rotated(name) else tensor
    return _untie_where_different(config, weights), weights


def _untie_where_different(config: LlamaConfig, weights: Weights) -> LlamaConfig:
    """The settings, and in `weights` the tensors, that follow from the two matrices of tied embeddings.

    As in transformers 5: if both are stored and differ, they are not tied; if only the output matrix is stored, it is
    also the embedding matrix.
    """
    if not config.tie_embeddings or "output.weight" not in weights:
        return config
    output = weights["output.weight"]
    if torch.equal(weights.setdefault("tok_embeddings.weight", output), output):
        return config
    return replace(config, tie_embeddings=False)


def write_folder(folder: Path, config: LlamaConfig, weights: Weights) -> None:
    """Write config.json and model.safetensors, for transformers 4 and 5."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {"rope_type": "llama3"} | {key: config.rope_scaling[key] for key in SCALING_KEYS}
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.n_rows,
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": rope,  # for transformers 5; the next two are for 4
        "rope_theta": config.rope_theta,
        "rope_scaling": None if config.rope_scaling is None else rope,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,  # unknown here; transformers' default ids could be those of ordinary tokens
        "eos_token_id": config.stop_tokens,
        "dtype": "float32",
    }
    tensors = {
        _translated(name, TO_HUGGING_FACE): _to_split_pairs(tensor, config.head_dim) if _is_rotated(name) else tensor
        for name, tensor in weights.items()
    }
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def _translated(name: str, table: dict[str, str]) -> str:
    """A tensor's name in the other format; an unknown name stays as it is, so that it is reported."""
    if not name.endswith(".weight"):
        return name
    stem, layers = name.removesuffix(".weight"), "layers."
    prefix = "model." if table is TO_HUGGING_FACE else ""
    if (inner := stem.removeprefix("model.")).startswith(layers) and inner.count(".") >= 2:
        _, number, block = inner.split(".", 2)
        return f"{prefix}layers.{number}.{table[block]}.weight" if block in table else name
    return f"{table[stem]}.weight" if stem in table else name


def _is_rotated(name: str) -> bool:
    """Whether the tensor by this llama2.c name projects to queries or keys."""
    return name.endswith(("attention.wq.weight", "attention.wk.weight"))


def _to_split_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of wq or wk in Hugging Face's order: rotary pairs (i, i + hd/2) instead of (2i, 2i + 1)."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _to_adjacent_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """The inverse of `_to_split_pairs`; a matrix of another size stays as it is, so that its shape is reported."""
    if len(weight) % head_dim:
        return weight
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
