"""Prompts to evaluate on, with the predictions of the exact estimators for them.

There are two kinds. The tasks of "pretrain" prompts come from the pool, those of "true" prompts are new, from N(0, I).
A model that predicts "true" prompts well has learned regression, not only the pool.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.icr.references import dmmse, least_squares, ridge
from zoo.icr.task import Prompts, Task, as_prompts

KINDS = ("pretrain", "true")
MEASURES = ("mse", "noise_free", "to_ridge", "to_dmmse")
REFERENCES = ("ridge", "dmmse", "least_squares")


class Evaluation(NamedTuple):
    """Prompts of one kind and, by name in REFERENCES, the estimators' predictions (..., B, K) of their y.

    "dmmse" is NaN where the pool is infinite.
    """

    prompts: Prompts
    answers: dict[str, Tensor]

    def rows(self, rows: Tensor | slice) -> "Evaluation":
        """The prompts at the given positions, (b,), with their predictions."""
        answers = {name: answer[..., rows, :] for name, answer in self.answers.items()}
        return Evaluation(self.prompts.rows(rows), answers)

    def errors(self, predictions: Tensor) -> dict[str, Tensor]:
        """Squared distances of predictions (..., B, K) by name in MEASURES, each (..., B, K).

        `mse` is the distance from y, `noise_free` from w . x (sigma2 less in expectation), `to_ridge` and `to_dmmse`
        from the predictions of these estimators.
        """
        targets = self.prompts.y, self.prompts.clean, self.answers["ridge"], self.answers["dmmse"]
        return {name: (predictions - target).square() for name, target in zip(MEASURES, targets, strict=True)}

    def reference_errors(self) -> dict[str, Tensor]:
        """Squared distances of the estimators' predictions from y by name in REFERENCES, each (..., B, K)."""
        return {name: (self.answers[name] - self.prompts.y).square() for name in REFERENCES}


class EvaluationBatch(NamedTuple):
    """A validation or test batch: prompts of both kinds with the exact estimators' predictions."""

    pretrain: Evaluation
    true: Evaluation

    def rows(self, rows: Tensor | slice) -> "EvaluationBatch":
        """The prompts at the given positions of both kinds."""
        return EvaluationBatch(self.pretrain.rows(rows), self.true.rows(rows))


def add_references(prompts: Prompts, task: Task) -> Evaluation:
    """The prompts with the exact estimators' predictions; dMMSE's are those for the task's pool."""
    x, y, _ = prompts
    pooled = torch.full_like(y, torch.nan) if task.M == "inf" else dmmse(x, y, task.pool(x.device), task.sigma2)
    return Evaluation(
        prompts, {"ridge": ridge(x, y, task.sigma2), "dmmse": pooled, "least_squares": least_squares(x, y)}
    )


def evaluation(kind: str, task: Task, n: int, split: str, device: str | torch.device = "cpu") -> Evaluation:
    """Draw n prompts of one kind for the task; `split` names the random streams."""
    drawn_from = task.with_diversity("inf") if kind == "true" else task
    return add_references(drawn_from.draw(n, task.task_seed, split, kind, device=device), task)


def by_kind(batch: Any, task: Task) -> dict[str, Evaluation]:
    """The evaluations in a validation batch, by kind.

    Args:
        batch: an `EvaluationBatch`; or prompts, as `as_prompts` takes them, which count as "pretrain" and whose
            references are computed here.
        task: the task that the model was trained on.
    """
    if isinstance(batch, EvaluationBatch):
        as_prompts(batch.pretrain.prompts, task)  # compares the sizes
        return batch._asdict()
    return {"pretrain": add_references(as_prompts(batch, task), task)}
