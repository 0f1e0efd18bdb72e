"""Errors of each checkpoint of a sweep on tasks of its pool and on new tasks, and those of the exact estimators."""

from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from zoo.errors import check_counts
from zoo.icr.analysis.saved_models import SavedModel
from zoo.icr.evaluation import KINDS, evaluation
from zoo.icr.predict import BATCH

Row = dict[str, Any]


@torch.no_grad()
def scores(models: list[SavedModel], n_prompts: int) -> dict[str, Any]:
    """Errors of every checkpoint on n_prompts of each kind.

    All checkpoints with the same M are evaluated on the same prompts. The "true" prompts are the same for all M, and
    their `mse` is the OOD score.

    Returns:
        "checkpoints": one row per checkpoint with M, step, and the `summary` of its errors on "true" and "pretrain"
        prompts. "references": one row per M with those of ridge and dMMSE.
    """
    check_counts(n_prompts=n_prompts)
    rows: list[Row] = []
    references: list[Row] = []
    # Checkpoints of the same M follow one another and share their prompts.
    for M, group in groupby(models, lambda saved: saved.config.M):
        evaluations = None
        for saved in group:
            model = saved.model()
            # dMMSE over a large pool takes longer than any model: compute it once for each M.
            if evaluations is None:
                evaluations = {
                    kind: evaluation(kind, saved.config, n_prompts, "analysis", model.device) for kind in KINDS
                }
                exact = {
                    name: {kind: summary(e.errors(e.answers[name])) for kind, e in evaluations.items()}
                    for name in ("ridge", "dmmse")
                }
                references.append({"M": M} | exact)
            # The checkpoint's errors on both kinds of prompts.
            errors = {
                kind: summary(e.errors(predict_in_batches(model, e.prompts.x, e.prompts.y)))
                for kind, e in evaluations.items()
            }
            # One row per checkpoint, printed when it is ready because each takes a while.
            rows.append({"M": M, "step": saved.step} | errors)
            print(terminal_line(rows[-1], references[-1]), flush=True)
    return {"task": models[0].task, "n_prompts": n_prompts, "checkpoints": rows, "references": references}


def predict_in_batches(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """The model's predictions (n, K), computed BATCH prompts at a time."""
    return torch.cat([model(x_part, y_part) for x_part, y_part in zip(x.split(BATCH), y.split(BATCH), strict=True)])


def summary(errors: dict[str, Tensor]) -> dict[str, Any]:
    """For each measure of squared errors (n, K) the `mean` and the K means `by_place`; None if it is not defined."""
    means = {name: error.double().mean(0) for name, error in errors.items()}  # (K,)
    return {
        name: None if mean.isnan().any() else {"mean": mean.mean().item(), "by_place": mean.tolist()}
        for name, mean in means.items()
    }


def mean(row: Row, kind: str, measure: str) -> float:
    """The mean of one measure in a row; NaN where it is not defined."""
    return row[kind][measure]["mean"] if row[kind][measure] else float("nan")


def terminal_line(row: Row, reference: Row) -> str:
    """A row for the terminal."""
    text = f"M {row['M']:>7}  step {row['step']:>8}"
    for kind, title in (("true", "new tasks"), ("pretrain", "pool")):
        exact = [name for name in ("ridge", "dmmse") if reference[name][kind]["mse"]]
        others = ", ".join(f"{name} {mean(reference[name], kind, 'mse'):.4f}" for name in exact)
        text += f"  {title} {mean(row, kind, 'mse'):.4f} ({others})"
    return text
