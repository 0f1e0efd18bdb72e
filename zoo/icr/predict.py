"""Use of a trained model: predict from a prompt, measure its error on new tasks."""

import warnings
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from zoo.errors import check_counts, check_number
from zoo.icr.model import ICRegConfig
from zoo.icr.references import ridge
from zoo.icr.task import as_floats, check_prompt

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
    line: int = 0  # in the file, from 1; 0: unknown


def _as_tensors(x_context: Any, y_context: Any, x_query: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The three parts of a prompt as tensors on the device of the queries."""
    query = as_floats("x_query", x_query)
    return as_floats("x_context", x_context, query.device), as_floats("y_context", y_context, query.device), query


def _as_prompts(x_context: Tensor, y_context: Tensor, x_query: Tensor, D: int) -> tuple[Tensor, Tensor]:
    """One prompt per query, the examples and then the query: x (q, n + 1, D) and y (q, n + 1), whose last is 0."""
    x_context, x_query = (x.reshape(len(x), D) for x in (x_context, x_query))  # an empty list has one axis only
    x = torch.cat([x_context.expand(len(x_query), -1, -1), x_query[:, None]], 1)
    y = torch.cat([y_context, y_context.new_zeros(1)]).expand(len(x_query), -1)
    return x, y


def predict_from_prompt(model: Predictor, x_context: Any, y_context: Any, x_query: Any) -> Tensor:
    """Predict the y of each query (q, D) from the same examples (n, D), (n,), n < K. Queries do not see each other.

    All three are tensors, NumPy arrays or lists of numbers.

    Returns:
        (q,) on the device of the queries.

    Raises:
        UserError: shapes do not fit, there are too many examples, or a number is NaN or infinite.

    Warns:
        UserWarning: the numbers are so large that a prediction is not finite.
    """
    return _with_warning("predictions", model_answers(model, x_context, y_context, x_query))


def ridge_from_prompt(model: Predictor, x_context: Any, y_context: Any, x_query: Any) -> Tensor:
    """Predictions (q,) of ridge regression, the best estimator for new tasks, from the same prompt."""
    return _with_warning("predictions of ridge regression", ridge_answers(model, x_context, y_context, x_query))


def _with_warning(name: str, answers: Tensor) -> Tensor:
    if n := int((~answers.isfinite()).sum()):
        warnings.warn(f"{n} of {len(answers)} {name} are not finite: the numbers are too large", stacklevel=3)
    return answers


@torch.no_grad()
def model_answers(model: Predictor, x_context: Any, y_context: Any, x_query: Any) -> Tensor:
    """As `predict_from_prompt`, without a warning."""
    x_context, y_context, x_query = _as_tensors(x_context, y_context, x_query)
    # Make one prompt per query and read the prediction at its last position, where y is unknown.
    check_prompt(model.config, x_context, y_context, x_query)
    dtype = torch.float64 if getattr(model, "dtype", None) == torch.float64 else torch.float32
    x, y = (part.to(model.device, dtype) for part in _as_prompts(x_context, y_context, x_query, model.config.D))
    batches = zip(x.split(BATCH), y.split(BATCH), strict=True)
    predictions = [model(x_part, y_part)[:, -1] for x_part, y_part in batches if len(x_part)]
    return torch.cat([x.new_zeros(0), *predictions]).to(x_query.device)


def ridge_answers(model: Predictor, x_context: Any, y_context: Any, x_query: Any) -> Tensor:
    """As `ridge_from_prompt`, without a warning."""
    x_context, y_context, x_query = _as_tensors(x_context, y_context, x_query)
    check_prompt(model.config, x_context, y_context, x_query)
    return ridge(*_as_prompts(x_context, y_context, x_query, model.config.D), model.config.sigma2)[:, -1]


@torch.no_grad()
def evaluate_ood_score(model: Predictor, n_samples: int = 10000, seed: int = 0) -> float:
    """Mean squared error on new tasks from N(0, I), noise included, over all positions. Ridge's is the lowest.

    Args:
        model: the model.
        n_samples: number of prompts, at least 1.
        seed: seed of the prompts.

    Returns:
        The error in squared units of y.

    Raises:
        UserError: n_samples is below 1, or seed is not an integer.
    """
    check_counts(n_samples=n_samples)
    check_number("seed", seed, "", lambda seed: True, whole=True)
    x, y, _ = model.config.with_diversity("inf").draw(n_samples, seed, "ood", device=model.device)
    batches = zip(x.split(BATCH), y.split(BATCH), strict=True)
    errors = [(model(x_part, y_part) - y_part).square().mean(-1) for x_part, y_part in batches]
    return torch.cat(errors).double().mean().item()
