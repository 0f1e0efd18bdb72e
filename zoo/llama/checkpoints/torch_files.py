"""Llama checkpoints written by torch.save: llama2.c's and the minllama course's `.pt`, and the zoo's own `.ckpt`.

A `.pt` holds {"model_args", "model"}, a `.ckpt` {"hyper_parameters", "state_dict"}. Files are read with
torch.load(weights_only=True), which runs no code from them.
"""

import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from zoo.errors import UserError
from zoo.llama.checkpoints.names import FORMATS, Weights, split_projections, strip_prefixes
from zoo.llama.model import LlamaConfig


def read_torch_file(path: Path) -> tuple[LlamaConfig, Weights]:
    """Settings and weights of a `.pt` or `.ckpt` file.

    Raises:
        UserError: the file is damaged, holds other Python objects than tensors and plain values, or no complete Llama.
    """
    content = _load(path)
    keys = content.keys() if isinstance(content, dict) else set()
    if {"model_args", "model"} <= keys:
        settings, weights = dict(content["model_args"]), strip_prefixes(content["model"], "")
        settings.setdefault("norm_eps", settings.get("layer_norm_eps", 1e-5))  # the course's name for it
        if {"tok_embeddings.weight", "output.weight"} <= weights.keys():
            settings["tie_embeddings"] = torch.equal(weights["tok_embeddings.weight"], weights["output.weight"])
        if "layers.0.feed_forward.w1.weight" in weights:  # llama2.c computes it from multiple_of
            settings["hidden_dim"] = len(weights["layers.0.feed_forward.w1.weight"])
    elif "base_digest" in keys:
        base = content["hyper_parameters"]["base"]
        raise UserError(
            f"{path} holds only the parameters trained on top of {base}: merge them with "
            "zoo.llama.export_classifier.export"
        )
    elif {"state_dict", "hyper_parameters"} <= keys:
        settings, weights = content["hyper_parameters"], strip_prefixes(content["state_dict"], "model.")
    else:
        raise UserError(f"{path} was written by torch, but holds no model of a known format: give one of {FORMATS}")
    known = {field.name for field in fields(LlamaConfig)}
    try:
        config = LlamaConfig(**{name: value for name, value in settings.items() if name in known})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} does not hold the settings of a Llama: {error}; give another file") from None
    return config, split_projections(weights, config)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds pickled Python objects besides tensors, which could run code: save its tensors and settings "
            "as plain values, or give another file"
        ) from None
    except Exception:  # torch raises errors of many types for a damaged file
        raise UserError(f"{path} is truncated or damaged: copy or save it again") from None
