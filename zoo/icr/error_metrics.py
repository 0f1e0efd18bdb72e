"""Squared errors by place: gathered over batches and processes, and what is logged and drawn of them."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from zoo.icr.evaluation import MEASURES, Evaluation

ByPlace = dict[str, dict[str, Tensor]]  # errors (..., K) by kind of prompts and by measure


class ErrorsByPlace(Metric):
    """The means over prompts of squared errors (..., B, K), by name and place: (MEASURES, ..., K)."""

    sums: Tensor
    count: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(MEASURES), *shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, errors: dict[str, Tensor]) -> None:
        # Not in place: the state may have been made in inference mode, and this be another.
        self.sums = self.sums + torch.stack([errors[name].double().sum(-2) for name in MEASURES])
        self.count = self.count + errors["mse"].shape[-2]

    def compute(self) -> Tensor:
        return self.sums / self.count


def means(split: str, reached: ByPlace) -> dict[str, float]:
    """What is logged of errors (K,): each one's mean over places, and `<split>_loss`; NaN is left out."""
    logged = {f"{split}_{kind}_{name}": e.mean().item() for kind, of in reached.items() for name, e in of.items()}
    logged[f"{split}_loss"] = logged[f"{split}_pretrain_mse"]
    return {name: mean for name, mean in logged.items() if not math.isnan(mean)}


def curves(reached: ByPlace, evaluations: dict[str, Evaluation]) -> dict[str, dict[str, list[float]]]:
    """By kind, the errors by place of the model and of each reference."""
    drawn = {}
    for kind, whole in evaluations.items():
        of = {"transformer": reached[kind]["mse"]}
        of |= {name: whole.errors(answer)["mse"].mean(-2) for name, answer in whole.answers.items()}
        drawn[kind] = {name: error.tolist() for name, error in of.items()}
    return drawn


def by_place(split: str, reached: ByPlace) -> dict[str, float]:
    """What TensorBoard has besides: the errors at each place."""
    return {
        f"{split}_{kind}_{name}_by_place/{k:02d}": error
        for kind, of in reached.items()
        for name in ("mse", "noise_free")
        for k, error in enumerate(of[name].tolist(), 1)
    }
