"""A checkpoint as it is published: without the state of its training, and without paths of the machine."""

import ntpath
import os
import re
from collections.abc import Mapping
from typing import Any

import torch

TRAINING = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "epoch", "MixedPrecision", "hparams_name")
_LOCAL_PATH = re.compile(r"(transformers:|file://)?((?:/|~|\.\.?[/\\]|[A-Za-z]:[/\\]|\\\\)[^\n]*)")


def without_training_state(
    checkpoint: Mapping[str, Any], data: str | None = None, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """The entries that validate, predict and fine-tuning need, in which a local path is replaced by its last part.

    Args:
        checkpoint: the content of a checkpoint of the zoo.
        data: replaces the stored path or name of the data. Default: a path becomes its last part.
        dtype: in which fp32 tensors are stored; they are loaded as fp32. Default: unchanged.
    """
    content = {name: value for name, value in checkpoint.items() if name not in TRAINING}
    if data is not None:
        content["datamodule_hyper_parameters"] = {**content.get("datamodule_hyper_parameters", {}), "data": data}
    content = without_paths(content)
    if dtype is not None:
        content["state_dict"] = {
            name: tensor.to(dtype) if tensor.dtype == torch.float32 else tensor
            for name, tensor in content["state_dict"].items()
        }
    return content


def without_paths(value: Any) -> Any:
    """Nested settings in which every local path (/x/y, ~/y, ../y, C:\\y) is replaced by its last part.

    Texts that are not settings stay: the tokenizer, and the names of classes.
    """
    if isinstance(value, Mapping):
        return {name: item if _is_content(name, item) else without_paths(item) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(without_paths(item) for item in value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str) and (match := _LOCAL_PATH.fullmatch(value)) is not None:
        scheme, path = match.groups()
        return ("" if scheme in (None, "file://") else scheme) + ntpath.basename(ntpath.normpath(path))
    return value


def _is_content(name: Any, value: Any) -> bool:
    """Whether the texts in an entry are content, which may start with "/": names of labels, a tokenizer in base64."""
    return name in ("state_dict", "label_names") or (name == "tokenizer" and isinstance(value, Mapping))
