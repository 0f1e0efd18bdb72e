"""Use of a trained model: predict from a prompt, measure its error on new tasks."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.icr.model import ICRegConfig
from zoo.icr.references import ridge
from zoo.icr.task import check_prompt

BATCH = 1024  # prompts evaluated together


class Predictor(Protocol):
    """A trained model, such as an `ICRTransformer`."""

    config: ICRegConfig

    @property
    def device(self) -> torch.device:
        """The device of its weights."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions (B, k) of y (B, k) from x (B, k, D) and the pairs before each."""


class Query(NamedTuple):
    """One prompt to predict from: n < K examples, and q queries that do not see each other."""

    index: int  # type: ignore[assignment]  # position in the file; hides tuple.index, which is not used
    x_context: Tensor  # (n, D)
    y_context: Tensor  # (n,)
    x_query: Tensor  # (q, D)


def _as_prompts(x_context: Tensor, y_context: Tensor, x_query: Tensor) -> tuple[Tensor, Tensor]:
    """One prompt per query, the examples and then the query: x (q, n + 1, D) and y (q, n + 1), whose last is 0."""
    x_context = x_context.reshape(len(x_context), x_query.shape[1])  # an empty list has one axis only
    x = torch.cat([x_context.expand(len(x_query), -1, -1), x_query[:, None]], 1)
    y = torch.cat([y_context, y_context.new_zeros(1)]).expand(len(x_query), -1)
    return x, y


@torch.no_grad()
def predict_from_prompt(model: Predictor, x_context: Tensor, y_context: Tensor, x_query: Tensor) -> Tensor:
    """Predict the y of each query (q, D) from the same examples (n, D), (n,), n < K. Queries do not see each other.

    Returns:
        (q,) on the device of the queries.

    Raises:
        UserError: shapes do not fit, there are too many examples, or a number is not finite.
    """
    # Make one prompt per query and read the prediction at its last position, where y is unknown.
    check_prompt(model.config, x_context, y_context, x_query)
    x, y = (part.to(model.device, torch.float32) for part in _as_prompts(x_context, y_context, x_query))
    batches = zip(x.split(BATCH), y.split(BATCH), strict=True)
    return torch.cat([model(x_part, y_part)[:, -1] for x_part, y_part in batches]).to(x_query.device)


def ridge_from_prompt(model: Predictor, x_context: Tensor, y_context: Tensor, x_query: Tensor) -> Tensor:
    """Predictions (q,) of ridge regression, the best estimator for new tasks, from the same prompt."""
    return ridge(*_as_prompts(x_context, y_context, x_query), model.config.sigma2)[:, -1]


@torch.no_grad()
def evaluate_ood_score(model: Predictor, n_samples: int = 10000, seed: int = 0) -> float:
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
