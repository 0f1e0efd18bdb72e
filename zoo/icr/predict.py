"""A trained model at work: load it, ask it, and measure it on new tasks."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.icr.model import ICRegConfig
from zoo.icr.references import ridge
from zoo.icr.task import check_prompt
from zoo.training.checkpoint_file import read_checkpoint

if TYPE_CHECKING:
    from zoo.icr.module import ICRTransformer

BATCH = 1024  # prompts at a time


def read(path: str | Path) -> "tuple[ICRegConfig, dict[str, Any]]":
    """The config of a checkpoint of `zoo fit` or of a sweep, and all that it holds.

    Raises:
        ValueError: the file is no checkpoint of an ICRTransformer.
    """
    checkpoint = read_checkpoint(str(path))
    if not str(checkpoint.get("zoo", {}).get("model")).endswith(".ICRTransformer"):
        raise UserError(f"{path} is no checkpoint of an ICRTransformer")
    settings = checkpoint["hyper_parameters"]
    return ICRegConfig(**{field.name: settings[field.name] for field in fields(ICRegConfig)}), checkpoint


def load_model(path: str | Path, config: ICRegConfig | None = None) -> "ICRTransformer":
    """The model of a checkpoint, ready to predict, on a GPU where there is one.

    Raises:
        ValueError: the file is no checkpoint of an ICRTransformer, or not of this `config`.
    """
    from zoo.icr.module import ICRTransformer

    trained, checkpoint = read(path)
    if config is not None and config != trained:
        raise UserError(f"{path} was trained as {trained}, not as {config}")
    model = ICRTransformer(trained)
    model.load_state_dict(checkpoint["state_dict"])
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _sequences(x_context: Tensor, y_context: Tensor, x_query: Tensor) -> tuple[Tensor, Tensor]:
    """x (q, n + 1, D) and y (q, n + 1): the context before each query, whose y nobody reads."""
    x_context = x_context.reshape(len(x_context), x_query.shape[1])  # an empty list has but one axis
    x = torch.cat([x_context.expand(len(x_query), -1, -1), x_query[:, None]], 1)
    y = torch.cat([y_context, y_context.new_zeros(1)]).expand(len(x_query), -1)
    return x, y


@torch.no_grad()
def predict_from_prompt(model: "ICRTransformer", x_context: Tensor, y_context: Tensor, x_query: Tensor) -> Tensor:
    """Predict the y of each query (q, D) from the same examples (n, D), (n,), n < K; no query sees another.

    Returns (q,), on the device of the queries. Raises ValueError where sizes do not fit, or the context is full.
    """
    check_prompt(model.config, x_context, y_context, x_query)
    x, y = (part.to(model.device, torch.float32) for part in _sequences(x_context, y_context, x_query))
    batches = zip(x.split(BATCH), y.split(BATCH), strict=True)
    return torch.cat([model(some_x, some_y)[:, -1] for some_x, some_y in batches]).to(x_query.device)


def ridge_from_prompt(model: "ICRTransformer", x_context: Tensor, y_context: Tensor, x_query: Tensor) -> Tensor:
    """(q,) what the best estimator for new tasks answers to the same prompt."""
    return ridge(*_sequences(x_context, y_context, x_query), model.config.sigma2)[:, -1]


@torch.no_grad()
def evaluate_ood_score(model: "ICRTransformer", n_samples: int = 10000, seed: int = 0) -> float:
    """The mean squared error, noise included and over all places, on new tasks from N(0, I); ridge's is the best."""
    if n_samples < 1:
        raise UserError(f"n_samples must be at least 1, not {n_samples}")
    x, y, _ = model.config.with_diversity("inf").draw(n_samples, seed, "ood", device=model.device)
    batches = zip(x.split(BATCH), y.split(BATCH), strict=True)
    errors = [(model(some_x, some_y) - some_y).square().mean(-1) for some_x, some_y in batches]
    return torch.cat(errors).double().mean().item()
