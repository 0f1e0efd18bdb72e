"""Load a trained ICRTransformer from a checkpoint of `zoo fit` or of a sweep."""

from dataclasses import fields
from pathlib import Path

import torch

from zoo.errors import UserError
from zoo.files.checkpoints import read_checkpoint
from zoo.icr.model import ICRegConfig
from zoo.icr.module import ICRTransformer
from zoo.weights import resolve_name


def read_config(path: str | Path) -> ICRegConfig:
    """The config in a checkpoint of `zoo fit` or of a sweep, or in weights by name such as "zoo:icr-linear".

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is damaged, or is not a checkpoint of an ICRTransformer, or the name is unknown.
    """
    path = resolve_name(path)
    checkpoint = read_checkpoint(path)
    if checkpoint.get("zoo", {}).get("model", "").rpartition(".")[2] != "ICRTransformer":
        raise UserError(f"{path} is not a checkpoint of an ICRTransformer")
    settings = checkpoint.get("hyper_parameters", {})
    names = [field.name for field in fields(ICRegConfig)]
    if missing := [name for name in names if name not in settings]:
        raise UserError(f"{path} is damaged: it lacks the setting {missing[0]}; give another checkpoint")
    try:
        return ICRegConfig(**{name: settings[name] for name in names})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def load_model(path: str | Path, config: ICRegConfig | None = None) -> ICRTransformer:
    """The model in a checkpoint, in evaluation mode, on a GPU if there is one.

    Args:
        path: a checkpoint of `zoo fit` or of a sweep, or weights by name such as "zoo:icr-linear".
        config: the config that the model must have; None accepts any.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is not a checkpoint of an ICRTransformer, or its config is another one, or its weights
            are not finite.
    """
    trained = read_config(path)
    if config is not None and config != trained:
        raise UserError(f"{path} was trained as {trained}, not as {config}")
    model = ICRTransformer.load_from_checkpoint(path, map_location="cpu")
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
