"""Squared errors by position in the prompt: averages over batches and processes, logged values, curves to plot."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from zoo.icr.evaluation import MEASURES, REFERENCES, Evaluation

NAMES = (*MEASURES, *REFERENCES)
ErrorsByKind = dict[str, dict[str, Tensor]]  # kind of prompts -> name in NAMES -> errors (..., K)


class PositionErrors(Metric):
    """Squared errors (..., B, K) averaged over prompts, for the model and the exact estimators: (NAMES, ..., K).

    Args:
        shape: the axes of an error except the prompts: (K,), or (S, K) with S stacked models.
    """

    sums: Tensor
    count: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(NAMES), *shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, evaluation: Evaluation, predictions: Tensor) -> None:
        """Add a batch: the prompts and the model's predictions (..., B, K)."""
        errors = evaluation.errors(predictions) | evaluation.reference_errors()
        # Not in place: the state may have been created in inference mode.
        self.sums = self.sums + torch.stack([errors[name].double().sum(-2) for name in NAMES])
        self.count = self.count + predictions.shape[-2]

    def compute(self) -> Tensor:
        return self.sums / self.count


def mean_errors(split: str, errors: ErrorsByKind) -> dict[str, float]:
    """The values to log for errors (K,): `<split>_<kind>_<measure>`, the mean over positions, and `<split>_loss`.

    Measures that are not defined, such as the distance to dMMSE for an infinite pool, are left out.
    """
    logged = {f"{split}_{kind}_{name}": of[name].mean().item() for kind, of in errors.items() for name in MEASURES}
    logged[f"{split}_loss"] = logged[f"{split}_pretrain_mse"]
    return {name: mean for name, mean in logged.items() if not math.isnan(mean)}


def error_curves(errors: ErrorsByKind) -> dict[str, dict[str, list[float]]]:
    """By kind of prompts, the mean squared errors (K,) of the transformer and of each exact estimator."""
    return {
        kind: {"transformer": of["mse"].tolist()} | {name: of[name].tolist() for name in REFERENCES}
        for kind, of in errors.items()
    }


def errors_by_position(split: str, errors: ErrorsByKind) -> dict[str, float]:
    """The errors at each position, with the names under which loggers show them."""
    return {
        f"by_position/{split}_{kind}_{name}/{k:02d}": error
        for kind, of in errors.items()
        for name in ("mse", "noise_free")
        for k, error in enumerate(of[name].tolist(), 1)
        if not math.isnan(error)
    }
