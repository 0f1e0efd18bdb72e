"""Use of a trained model: load it, predict from a prompt, measure its error on new tasks."""

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.icr.model import ICRegConfig
from zoo.icr.references import ridge
from zoo.icr.task import check_prompt
from zoo.training.checkpoint_file import read_checkpoint

if TYPE_CHECKING:
    from zoo.icr.module import ICRTransformer

BATCH = 1024  # prompts evaluated together


class Query(NamedTuple):
    """One prompt to predict from: n < K examples, and q queries that do not see each other."""

    index: int  # type: ignore[assignment]  # position in the file; hides tuple.index, which is not used
    x_context: Tensor  # (n, D)
    y_context: Tensor  # (n,)
    x_query: Tensor  # (q, D)


def read_config(path: str | Path) -> "tuple[ICRegConfig, dict[str, Any]]":
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


def load_model(path: str | Path, config: ICRegConfig | None = None) -> "ICRTransformer":
    """The model in a checkpoint, in evaluation mode, on a GPU if there is one.

    Args:
        path: a checkpoint of `zoo fit` or of a sweep.
        config: the config that the model must have; None accepts any.

    Raises:
        UserError: the file is not a checkpoint of an ICRTransformer, or its config is another one.
    """
    from zoo.icr.module import ICRTransformer

    trained, checkpoint = read_config(path)
    if config is not None and config != trained:
        raise UserError(f"{path} was trained as {trained}, not as {config}")
    model = ICRTransformer(trained)
    model.load_state_dict(checkpoint["state_dict"])
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _as_prompts(x_context: Tensor, y_context: Tensor, x_query: Tensor) -> tuple[Tensor, Tensor]:
    """One prompt per query, the examples and then the query: x (q, n + 1, D) and y (q, n + 1), whose last is 0."""
    x_context = x_context.reshape(len(x_context), x_query.shape[1])  # an empty list has one axis only
    x = torch.cat([x_context.expand(len(x_query), -1, -1), x_query[:, None]], 1)
    y = torch.cat([y_context, y_context.new_zeros(1)]).expand(len(x_query), -1)
    return x, y


@torch.no_grad()
def predict_from_prompt(model: "ICRTransformer", x_context: Tensor, y_context: Tensor, x_query: Tensor) -> Tensor:
    """Predict the y of each query (q, D) from the same examples (n, D), (n,), n < K. Queries do not see each other.

    Returns:
        (q,) on the device of the queries.

    Raises:
        UserError: shapes do not fit, there are too many examples, or a number is not finite.
    """
    check_prompt(model.config, x_context, y_context, x_query)
    x, y = (part.to(model.device, torch.float32) for part in _as_prompts(x_context, y_context, x_query))
    batches = zip(x.split(BATCH), y.split(BATCH), strict=True)
    return torch.cat([model(x_part, y_part)[:, -1] for x_part, y_part in batches]).to(x_query.device)


def ridge_from_prompt(model: "ICRTransformer", x_context: Tensor, y_context: Tensor, x_query: Tensor) -> Tensor:
    """Predictions (q,) of ridge regression, the best estimator for new tasks, from the same prompt."""
    return ridge(*_as_prompts(x_context, y_context, x_query), model.config.sigma2)[:, -1]


@torch.no_grad()
def evaluate_ood_score(model: "ICRTransformer", n_samples: int = 10000, seed: int = 0) -> float:
    """Mean squared error on new tasks from N(0, I), noise included, over all positions. The lowest is that of ridge.

    Args:
        model: the model.
        n_samples: number of prompts, at least 1.
        seed: seed of the prompts.
    """
    if n_samples < 1:
        raise UserError(f"n_samples must be at least 1, not {n_samples}")
    x, y, _ = model.config.with_diversity("inf").draw(n_samples, seed, "ood", device=model.device)
    batches = zip(x.split(BATCH), y.split(BATCH), strict=True)
    errors = [(model(x_part, y_part) - y_part).square().mean(-1) for x_part, y_part in batches]
    return torch.cat(errors).double().mean().item()
