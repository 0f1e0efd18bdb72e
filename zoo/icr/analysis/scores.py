"""How well each checkpoint of a sweep predicts, on its pool's tasks and on new ones, beside the exact estimators."""

from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.icr.analysis.saved_models import Saved
from zoo.icr.evaluation import KINDS, evaluation
from zoo.icr.predict import BATCH

Row = dict[str, Any]


@torch.no_grad()
def scores(found: list[Saved], n_prompts: int) -> dict[str, Any]:
    """Errors of every checkpoint on n_prompts of each kind, the same for all of its M; see `summary`.

    Returns `checkpoints`, a row for each (M, step, and its errors on "true" and "pretrain" prompts), and `references`,
    a row for each M with those of ridge and dMMSE. "true" `mse` is the OOD score: its prompts are the same for all M.
    """
    if n_prompts < 1:
        raise UserError(f"n_prompts must be at least 1, not {n_prompts}")
    rows: list[Row] = []
    references: list[Row] = []
    for M, group in groupby(found, lambda one: one.config.M):
        whole = None
        for one in group:
            model = one.model()
            if whole is None:  # dMMSE over a large pool takes longer than any model: once for each M
                whole = {kind: evaluation(kind, one.config, n_prompts, "analysis", model.device) for kind in KINDS}
                exact = {n: {k: summary(e.errors(e.answers[n])) for k, e in whole.items()} for n in ("ridge", "dmmse")}
                references.append({"M": M} | exact)
            reached = {k: summary(e.errors(answers(model, e.prompts.x, e.prompts.y))) for k, e in whole.items()}
            rows.append({"M": M, "step": one.step} | reached)
            print(line(rows[-1], references[-1]), flush=True)
    return {"task": found[0].task, "n_prompts": n_prompts, "checkpoints": rows, "references": references}


def answers(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """(n, K) the model's predictions, some prompts at a time."""
    return torch.cat([model(some_x, some_y) for some_x, some_y in zip(x.split(BATCH), y.split(BATCH), strict=True)])


def summary(errors: dict[str, Tensor]) -> dict[str, Any]:
    """Squared errors (n, K) by measure -> their `mean` and, from k = 1 to K, `by_place`; None where there are none."""
    means = {name: error.double().mean(0) for name, error in errors.items()}  # (K,)
    return {
        name: None if mean.isnan().any() else {"mean": mean.mean().item(), "by_place": mean.tolist()}
        for name, mean in means.items()
    }


def mean(row: Row, kind: str, measure: str) -> float:
    """One mean of a row; NaN where it has none."""
    return row[kind][measure]["mean"] if row[kind][measure] else float("nan")


def line(row: Row, reference: Row) -> str:
    """A row for the terminal."""
    text = f"M {row['M']:>7}  step {row['step']:>8}"
    for kind, title in (("true", "new tasks"), ("pretrain", "pool")):
        exact = [name for name in ("ridge", "dmmse") if reference[name][kind]["mse"]]
        beside = ", ".join(f"{name} {mean(reference[name], kind, 'mse'):.4f}" for name in exact)
        text += f"  {title} {mean(row, kind, 'mse'):.4f} ({beside})"
    return text
