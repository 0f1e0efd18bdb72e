"""A checkpoint as it is published: without the state of its training, and without paths of the machine."""

import os
from collections.abc import Mapping
from typing import Any

import torch

TRAINING = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch", "MixedPrecision", "hparams_name")


def without_training_state(
    checkpoint: Mapping[str, Any], data: str | None = None, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """The entries that validate, predict and fine-tuning need.

    Args:
        checkpoint: the content of a checkpoint of the zoo.
        data: replaces the stored path or name of the data. Default: a path becomes its last part.
        dtype: in which fp32 tensors are stored; they are loaded as fp32. Default: unchanged.
    """
    content = {name: value for name, value in checkpoint.items() if name not in TRAINING}
    settings = dict(content.get("datamodule_hyper_parameters", {}))
    if data is not None:
        settings["data"] = data
    for name, value in settings.items():
        if isinstance(value, str) and os.path.isabs(value):
            settings[name] = os.path.basename(os.path.normpath(value))
    if settings:
        content["datamodule_hyper_parameters"] = settings
    if dtype is not None:
        content["state_dict"] = {
            name: tensor.to(dtype) if tensor.dtype == torch.float32 else tensor
            for name, tensor in content["state_dict"].items()
        }
    return content
