"""Llama checkpoints written by torch.save: llama2.c's and the minllama course's `.pt`, and the zoo's own `.ckpt`.

A `.pt` holds {"model_args", "model"}, a `.ckpt` {"hyper_parameters", "state_dict"}, as does a checkpoint of the zoo in
safetensors format. Files are read with torch.load(weights_only=True), which runs no code from them.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.files.safetensors_checkpoints import is_safetensors_checkpoint, read_safetensors_checkpoint
from zoo.files.torch_files import read_torch_file as read
from zoo.llama.checkpoints.names import FORMATS, Weights, check_layers, split_projections, strip_prefixes
from zoo.llama.model import LlamaConfig
from zoo.registry import MODELS

KNOWN = {field.name for field in fields(LlamaConfig)}
LONGEST_SETTING = 1000  # characters


def read_torch_file(path: Path) -> tuple[LlamaConfig, Weights]:
    """Settings and weights of a `.pt` or `.ckpt` file, or of a folder by `zoo export --format safetensors`.

    Raises:
        UserError: the file is damaged, holds other Python objects than tensors and plain values, or no complete Llama.
    """
    content: Any = read_safetensors_checkpoint(path) if is_safetensors_checkpoint(path) else read(path)
    keys = set(content) if isinstance(content, dict) else set()
    if isinstance(about := content.get("zoo") if keys else None, Mapping):
        kind = str(about.get("model", "")).rpartition(".")[2]
        if kind in MODELS and not kind.startswith("Llama"):
            raise UserError(f"{path} holds a {kind}, not a Llama: give weights of a Llama")
    if {"model_args", "model"} <= keys:
        _check_kinds(path, content, "model_args", "model")
        settings, weights = dict(content["model_args"]), strip_prefixes(content["model"], "")
        settings.setdefault("norm_eps", settings.get("layer_norm_eps", 1e-5))  # the course's name for it
        if {"tok_embeddings.weight", "output.weight"} <= weights.keys():
            settings["tie_embeddings"] = torch.equal(weights["tok_embeddings.weight"], weights["output.weight"])
        w1 = weights.get("layers.0.feed_forward.w1.weight")
        if w1 is not None and w1.ndim:  # llama2.c computes it from multiple_of
            settings["hidden_dim"] = len(w1)
    elif "base_digest" in keys:
        settings = content.get("hyper_parameters")
        base = settings.get("base") if isinstance(settings, Mapping) else "other weights"
        raise UserError(
            f"{path} holds only the parameters trained on top of {base}: merge them with "
            "zoo.llama.export_classifier.export"
        )
    elif {"state_dict", "hyper_parameters"} <= keys:
        _check_kinds(path, content, "hyper_parameters", "state_dict")
        settings, weights = content["hyper_parameters"], strip_prefixes(content["state_dict"], "model.")
    else:
        raise UserError(f"{path} was written by torch, but holds no model of a known format: give one of {FORMATS}")
    try:
        config = LlamaConfig(**{name: value for name, value in settings.items() if name in KNOWN})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} does not hold the settings of a Llama: {error}; give another file") from None
    check_layers(config, weights, path)
    return config, split_projections(weights, config)


def _check_kinds(path: Path, content: Mapping[str, Any], settings: str, weights: str) -> None:
    """Raises UserError unless the entry `settings` maps names to values, and `weights` names to tensors."""
    for name in (settings, weights):
        entry = content[name]
        if not isinstance(entry, Mapping) or not all(isinstance(key, str) for key in entry):
            raise UserError(f"{path} is damaged: its entry {name} is not a dictionary by names; give another file")
    for name, value in content[settings].items():
        if name in KNOWN and (isinstance(value, Tensor) or len(repr(value)) > LONGEST_SETTING):
            raise UserError(f"{path} is damaged: its setting {name!r} is a {type(value).__name__}; give another file")
    # A module may keep other state next to its weights.
    if not any(isinstance(value, Tensor) for value in content[weights].values()):
        raise UserError(f"{path} is damaged: its entry {weights} has no tensors; give another file")
