"""Fixed prompts to evaluate on, with what the exact estimators answer to them.

"pretrain" prompts have tasks of the pool, "true" ones new tasks from N(0, I): to do well on these is to have learnt
regression rather than the pool.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from zoo.icr.references import dmmse, least_squares, ridge
from zoo.icr.task import Prompts, Task

KINDS = ("pretrain", "true")
MEASURES = ("mse", "noise_free", "to_ridge", "to_dmmse")


class Evaluation(NamedTuple):
    """Prompts, and each estimator's predictions (..., B, K) of their y; "dmmse" of a pool that is infinite is NaN."""

    prompts: Prompts
    answers: dict[str, Tensor]

    def rows(self, rows: Tensor) -> "Evaluation":
        """Some of the prompts, by their places (b,)."""
        answers = {name: answer[..., rows, :] for name, answer in self.answers.items()}
        return Evaluation(self.prompts.rows(rows), answers)

    def errors(self, predictions: Tensor) -> dict[str, Tensor]:
        """The MEASURES of predictions (..., B, K), each (..., B, K): how far they are, squared, from what is meant.

        `mse` is from y, `noise_free` from w . x (sigma2 less in expectation), `to_ridge` and `to_dmmse` from theirs.
        """
        targets = self.prompts.y, self.prompts.clean, self.answers["ridge"], self.answers["dmmse"]
        return {name: (predictions - target).square() for name, target in zip(MEASURES, targets, strict=True)}


def evaluation(kind: str, task: Task, n: int, split: str, device: str | torch.device = "cpu") -> Evaluation:
    """n prompts of one kind for the task; `split` names the draw."""
    asked = task.with_diversity("inf") if kind == "true" else task
    prompts = asked.draw(n, task.task_seed, split, kind, device=device)
    x, y, _ = prompts
    pooled = torch.full_like(y, torch.nan) if task.M == "inf" else dmmse(x, y, task.pool(device), task.sigma2)
    answers = {"ridge": ridge(x, y, task.sigma2), "dmmse": pooled, "least_squares": least_squares(x, y)}
    return Evaluation(prompts, answers)
