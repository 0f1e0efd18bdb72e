"""Llama's weights as a Hugging Face folder: config.json with model.safetensors, or shards and their index.

Theirs differ by name, by the order of the rows of q and k (rotary pairs x[i] with x[i + hd/2], not adjacent
ones), and by where the rotary settings stand, which transformers 5 moved.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo.errors import UserError
from zoo.llama.model import SCALING_KEYS, LlamaConfig

Weights = dict[str, Tensor]  # by llama2.c's names
THEIRS = {
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
OURS = {theirs: ours for ours, theirs in THEIRS.items()}


def read_folder(folder: Path) -> tuple[LlamaConfig, Weights]:
    """Settings and weights of a folder; ValueError, in one sentence, for what is no Llama or damaged."""
    place = folder / "config.json"
    theirs = _read_json(place)
    if theirs.get("model_type") != "llama":
        raise UserError(f"{place} describes a {theirs.get('model_type')!r} model, not a llama")
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}  # transformers 5, and 4
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3") or theirs.get("attention_bias") or theirs.get("mlp_bias"):
        raise UserError(f"{place} asks for biases or for rotary scaling {kind!r}, which this Llama has not")
    try:
        config = LlamaConfig(
            vocab_size=theirs["vocab_size"],
            dim=theirs["hidden_size"],
            n_layers=theirs["num_hidden_layers"],
            n_heads=theirs["num_attention_heads"],
            n_kv_heads=theirs.get("num_key_value_heads"),
            hidden_dim=theirs["intermediate_size"],
            max_seq_len=theirs.get("max_position_embeddings", 2048),
            norm_eps=theirs.get("rms_norm_eps", 1e-6),
            rope_theta=rope.get("rope_theta", theirs.get("rope_theta", 10000.0)),
            rope_scaling={key: rope[key] for key in SCALING_KEYS} if kind == "llama3" else None,
            tie_embeddings=theirs.get("tie_word_embeddings", False),
        )
    except KeyError as error:
        raise UserError(f"{place} lacks the field {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{place} holds settings of no Llama: {error}") from None
    if theirs.get("head_dim") not in (None, config.head_dim):
        raise UserError(f"{place} sets head_dim {theirs['head_dim']}, but here it is hidden_size / heads")
    index = folder / "model.safetensors.index.json"
    shards = {"model.safetensors"}  # before an index, which an earlier, sharded model may have left beside it
    if index.exists() and not (folder / "model.safetensors").exists():
        shards = set(_read_json(index).get("weight_map", {}).values())
    weights: Weights = {}
    for shard in sorted(shards):
        if Path(shard).name != shard or not (folder / shard).is_file():
            raise UserError(f"{folder} lacks its weights file {shard}")
        try:
            tensors = load_file(folder / shard)
        except SafetensorError:
            raise UserError(f"{folder / shard} is truncated, or no safetensors file") from None
        for name, tensor in tensors.items():
            if not name.endswith("rotary_emb.inv_freq"):  # a table, which old versions stored
                name, tensor = _translated(name, OURS), tensor.float()
                weights[name] = _unpermuted(tensor, config.head_dim) if _is_rotated(name) else tensor
    return config, weights


def write_folder(folder: Path, config: LlamaConfig, weights: Weights) -> None:
    """Writes config.json and model.safetensors into a folder, for transformers 4 and 5."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {"rope_type": "llama3"} | {key: config.rope_scaling[key] for key in SCALING_KEYS}
    theirs = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
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
        "bos_token_id": None,  # the tokenizer's affair; a wrong one would end texts at an ordinary token
        "eos_token_id": None,
        "dtype": "float32",
    }
    tensors = {
        _translated(name, THEIRS): _permuted(tensor, config.head_dim) if _is_rotated(name) else tensor
        for name, tensor in weights.items()
    }
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(theirs, indent=2) + "\n")


def _translated(name: str, words: dict[str, str]) -> str:
    """A tensor's name in the other tongue; an unknown one stays, to be refused by that name."""
    stem, layers = name.removesuffix(".weight"), "layers."
    prefix = "model." if words is THEIRS else ""
    if (inner := stem.removeprefix("model.")).startswith(layers) and inner.count(".") >= 2:
        _, number, part = inner.split(".", 2)
        return f"{prefix}layers.{number}.{words[part]}.weight" if part in words else name
    return f"{words[stem]}.weight" if stem in words else name


def _is_rotated(name: str) -> bool:
    return name.endswith(("attention.wq.weight", "attention.wk.weight"))


def _permuted(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of q or k from adjacent rotary pairs to half-split ones."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _unpermuted(weight: Tensor, head_dim: int) -> Tensor:
    """Back again; a matrix that is no whole number of heads stays, to be refused by its shape."""
    if len(weight) % head_dim:
        return weight
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path.parent} is no Hugging Face folder: it has no {path.name}")
    try:
        content = json.loads(path.read_text())
    except ValueError:  # JSON's and Unicode's errors
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is truncated, or no JSON object")
    return content
