"""Load a trained ICRTransformer from a checkpoint of `zoo fit` or of a sweep."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from zoo.errors import UserError
from zoo.files.checkpoints import read_checkpoint
from zoo.icr.model import ICRegConfig
from zoo.icr.module import ICRTransformer


def read_config(path: str | Path) -> tuple[ICRegConfig, dict[str, Any]]:
    """The config in a checkpoint of `zoo fit` or of a sweep, and the checkpoint itself.

    Raises:
        UserError: the file is not a checkpoint of an ICRTransformer.
    """
    checkpoint = read_checkpoint(path)
    metadata = checkpoint.get("zoo")
    name = str(metadata.get("model")) if isinstance(metadata, dict) else ""
    if name.rpartition(".")[2] != "ICRTransformer":
        raise UserError(f"{path} is not a checkpoint of an ICRTransformer")
    settings = checkpoint["hyper_parameters"]
    return ICRegConfig(**{field.name: settings[field.name] for field in fields(ICRegConfig)}), checkpoint


def load_model(path: str | Path, config: ICRegConfig | None = None) -> ICRTransformer:
    """The model in a checkpoint, in evaluation mode, on a GPU if there is one.

    Args:
        path: a checkpoint of `zoo fit` or of a sweep.
        config: the config that the model must have; None accepts any.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file is not a checkpoint of an ICRTransformer, or its config is another one, or its weights
            are not finite.
    """
    trained, checkpoint = read_config(path)
    if config is not None and config != trained:
        raise UserError(f"{path} was trained as {trained}, not as {config}")
    model = ICRTransformer(trained)
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
