"""Llama's weights in other people's files, and back.

Read, told apart by what is inside and not by the name:
- llama2.c's legacy `.bin` (https://github.com/karpathy/llama2.c, export.py version 0): seven int32, then fp32
  tensors; a positive vocabulary size says that the output matrix is the embedding, a negative one that it is
  the last tensor;
- llama2.c's `.pt`, {"model_args", "model"}, also with the projection names of CMU's minllama course;
- a Hugging Face folder (see hugging_face.py);
- a Lightning checkpoint of this zoo, {"state_dict", "hyper_parameters"}.
Written: the first and the third. llama2.c's names (wq, wk, wv, w1, w2, w3) are the common tongue in between.
Nothing here runs a file's code: torch.load(weights_only=True) and safetensors only.
"""

import hashlib
import os
import pickle
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import fields, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.llama.checkpoints.hugging_face import Weights, read_folder, write_folder
from zoo.llama.model import Llama, LlamaConfig

HEADER = struct.Struct("<7i")  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, +-vocab_size, max_seq_len
FUSED = {"attention.wqkv": ("wq", "wk", "wv"), "feed_forward.w13": ("w1", "w3")}
COURSE = {f"compute_{word}": f"w{word[0]}" for word in ("query", "key", "value", "output")}
TABLES = ("freqs_cos", "freqs_sin", "rope.freqs")  # rotary tables, which some versions stored
FORMATS = "llama2.c's .bin and .pt, a Hugging Face folder, a checkpoint of this zoo"


def load_checkpoint(path: str | os.PathLike) -> Llama:
    """The model in a file or folder of any format above: fp32, on the CPU, in evaluation mode.

    FileNotFoundError if there is nothing at `path`; ValueError, in one sentence, if it is truncated, foreign or
    holds pickled objects, or if a tensor is missing, left over or of the wrong shape.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    if path.is_dir():
        config, weights = read_folder(path)
    else:
        with path.open("rb") as file:
            magic = file.read(2)
        zipped = magic in (b"PK", b"\x80\x02")  # torch.save's, now and before 2020
        config, weights = _read_torch(path) if zipped else _read_bin(path)
    expected = _shapes(config)
    if config.tie_embeddings:
        weights.pop("output.weight", None)
    for fault, names in (("lacks", expected.keys() - weights), ("has an unknown", weights.keys() - expected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{path} {fault} tensor {min(names)}{more}: it is no Llama of the settings it names")
    for name, shape in expected.items():
        if weights[name].shape != shape:
            found = tuple(weights[name].shape)
            raise UserError(f"{path}: the tensor {name} is {found}, but the settings ask for {shape}")
    model = Llama(config).eval()
    model.load_state_dict(_joined(weights, config))
    return model


def new_or_loaded(config: LlamaConfig, weights: str | None, vocab_size: int | None = None) -> Llama:
    """A new model of these settings, or the one in the file `weights`, with their dropout and gradient checkpointing.

    ValueError where the file's model has another vocabulary than the tokenizer, whose size is `vocab_size`.
    """
    if not weights:
        return Llama(config)
    loaded = load_checkpoint(weights)
    if vocab_size not in (None, loaded.config.vocab_size):
        raise UserError(
            f"the tokenizer has {vocab_size} tokens, but the model in {weights} {loaded.config.vocab_size}: "
            "give its own with --data.tokenizer"
        )
    model = Llama(
        replace(loaded.config, dropout=config.dropout, gradient_checkpointing=config.gradient_checkpointing)
    )
    model.load_state_dict(loaded.state_dict())
    return model


def digest(model: Llama) -> str:
    """16 hex digits that two models share if all their weights are equal."""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()


def save_checkpoint(model: Llama, path: str | os.PathLike, format: str = "hf") -> None:
    """Writes fp32 weights, each file whole or not at all: "hf" a folder, "llama2c" a legacy `.bin` for run.c.

    What was there by the same name is replaced. ValueError for an unknown format and for what a format cannot
    express: the `.bin` knows neither rotary scaling, nor a theta other than 10000, nor a norm_eps but 1e-5.
    """
    path, config = Path(path), model.config
    if format not in ("hf", "llama2c"):
        raise UserError(f'a checkpoint is saved as "hf" or "llama2c", not as {format!r}')
    if format == "llama2c" and (config.rope_theta, config.rope_scaling, config.norm_eps) != (10000, None, 1e-5):
        raise UserError(
            "llama2.c's .bin expresses only rope_theta 10000, no rope_scaling and norm_eps 1e-5: save this "
            'model as "hf"'
        )
    weights = _parted(model.state_dict(), config)
    folder = path if format == "hf" else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        if format == "hf":
            write_folder(Path(temporary), config, weights)
        else:
            _write_bin(Path(temporary, path.name), config, weights)
        for file in Path(temporary).iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
            os.replace(file, folder / file.name)


def _shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor by llama2.c's name, in the order of the `.bin`."""
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
    shapes: dict[str, tuple[int, ...]] = {"tok_embeddings.weight": (config.vocab_size, dim)}
    shapes |= {f"layers.{i}.{part}.weight": layer[part] for part in layer for i in range(config.n_layers)}
    shapes["norm.weight"] = (dim,)
    if not config.tie_embeddings:
        shapes["output.weight"] = (config.vocab_size, dim)
    return shapes


def _joined(weights: Weights, config: LlamaConfig) -> Weights:
    """llama2.c's tensors to ours: q, k and v in one, gate and up in one."""
    weights = dict(weights)
    for i in range(config.n_layers):
        for fused, parts in FUSED.items():
            room = f"layers.{i}.{fused.split('.')[0]}"
            together = torch.cat([weights.pop(f"{room}.{part}.weight") for part in parts])
            weights[f"layers.{i}.{fused}.weight"] = together
    return weights


def _parted(state: Mapping[str, Tensor], config: LlamaConfig) -> Weights:
    """Ours to llama2.c's, in fp32 on the CPU; tensors that are llama2.c's already stay."""
    weights = {name: tensor.detach().float().cpu() for name, tensor in state.items()}
    kv = config.kv_heads * config.head_dim
    sizes = {"wq": config.dim, "wk": kv, "wv": kv, "w1": config.ffn_dim, "w3": config.ffn_dim}
    for i in range(config.n_layers):
        for fused, parts in FUSED.items():
            together = weights.get(f"layers.{i}.{fused}.weight")
            rows = [sizes[part] for part in parts]
            if together is not None and len(together) == sum(rows):  # else refused by its name
                del weights[f"layers.{i}.{fused}.weight"]
                room = f"layers.{i}.{fused.split('.')[0]}"
                for part, tensor in zip(parts, together.split(rows), strict=True):
                    weights[f"{room}.{part}.weight"] = tensor
    return weights


def _read_bin(path: Path) -> tuple[LlamaConfig, Weights]:
    content = path.read_bytes()
    if content[:4] == b"24ka":
        raise UserError(f"{path} is a newer llama2.c export: write it again with its export.py --version 0")
    try:
        dim, hidden, layers, heads, kv_heads, vocab, context = HEADER.unpack_from(content)
        config = LlamaConfig(
            vocab_size=abs(vocab), dim=dim, n_layers=layers, n_heads=heads, n_kv_heads=kv_heads,
            hidden_dim=hidden, max_seq_len=context, tie_embeddings=vocab > 0,
        )  # fmt: skip
        # Of any other file's first bytes as a header, most are contradictory and the rest describe a giant.
        if layers * dim * hidden > 2**40:
            raise ValueError
    except (struct.error, ValueError):
        raise UserError(f"{path} is no checkpoint of a known format, which are: {FORMATS}") from None
    shapes = _shapes(config)
    tables = context * config.head_dim  # of cosines and sines: run.c skips them, and so do we
    size = HEADER.size + 4 * (tables + sum(map(prod, shapes.values())))
    if len(content) != size:
        fault = "truncated" if len(content) < size else "damaged, or of another format"
        raise UserError(f"{path} is {fault}: {len(content)} bytes, where its header as a llama2.c .bin means {size}")
    offset, weights = HEADER.size, {}
    for name, shape in shapes.items():
        if name == "output.weight":
            offset += 4 * tables
        array = np.frombuffer(content, "<f4", prod(shape), offset).astype(np.float32)
        weights[name] = torch.from_numpy(array).view(shape)
        offset += 4 * prod(shape)
    return config, weights


def _write_bin(path: Path, config: LlamaConfig, weights: Weights) -> None:
    vocab = config.vocab_size if config.tie_embeddings else -config.vocab_size
    sizes = config.dim, config.ffn_dim, config.n_layers, config.n_heads, config.kv_heads, vocab, config.max_seq_len
    # Angles and tables by torch in fp32, as in llama2.c's model.py: so its own files come out again to the byte.
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
    angles = torch.outer(torch.arange(config.max_seq_len), frequencies)
    output = [weights["output.weight"]] if not config.tie_embeddings else []
    body = [weights[name] for name in _shapes(config) if name != "output.weight"]
    with path.open("wb") as file:
        file.write(HEADER.pack(*sizes))
        for tensor in (*body, angles.cos(), angles.sin(), *output):
            file.write(tensor.contiguous().numpy().astype("<f4", copy=False).tobytes())


def _read_torch(path: Path) -> tuple[LlamaConfig, Weights]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds pickled Python objects beside its tensors; these could run code, so it stays closed"
        ) from None
    except Exception:  # torch's reader has no errors of its own: whatever it says, the file is not what it writes
        raise UserError(f"{path} is truncated or damaged: torch cannot read it") from None
    keys = content.keys() if isinstance(content, dict) else set()
    if {"model_args", "model"} <= keys:
        settings, weights = dict(content["model_args"]), _cleaned(content["model"], "")
        settings.setdefault("norm_eps", settings.get("layer_norm_eps", 1e-5))  # the course's word
        if {"tok_embeddings.weight", "output.weight"} <= weights.keys():
            settings["tie_embeddings"] = torch.equal(weights["tok_embeddings.weight"], weights["output.weight"])
        if "layers.0.feed_forward.w1.weight" in weights:  # llama2.c leaves it to multiple_of and a version's default
            settings["hidden_dim"] = len(weights["layers.0.feed_forward.w1.weight"])
    elif "base_digest" in keys:
        raise UserError(f"{path} holds only what was trained beside {content['hyper_parameters']['base']}: export it")
    elif {"state_dict", "hyper_parameters"} <= keys:
        settings, weights = content["hyper_parameters"], _cleaned(content["state_dict"], "model.")
    else:
        raise UserError(f"{path} was written by torch, but holds no model of a known format, which are: {FORMATS}")
    known = {field.name for field in fields(LlamaConfig)}
    try:
        config = LlamaConfig(**{name: value for name, value in settings.items() if name in known})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} holds settings of no Llama: {error}") from None
    return config, _parted(weights, config)


def _cleaned(state: Mapping[str, Any], prefix: str) -> Weights:
    """The tensors whose names begin with `prefix`, without it, without torch.compile's `_orig_mod.`, and by
    llama2.c's names where they have the course's."""
    weights = {}
    for name, tensor in state.items():
        name = name.replace("_orig_mod.", "")
        if isinstance(tensor, Tensor) and name.startswith(prefix) and not name.endswith(TABLES):
            name = name.removeprefix(prefix)
            for theirs, ours in COURSE.items():
                name = name.replace(theirs, ours)
            weights[name] = tensor
    return weights
