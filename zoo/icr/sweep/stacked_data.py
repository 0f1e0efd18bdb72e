"""Prompts for several pool sizes M over the same x and noise."""

from collections.abc import Sequence
from typing import Any

import torch

from zoo.datamodules import LinearRegressionTasks
from zoo.icr.evaluation import KINDS, Evaluation, EvaluationBatch
from zoo.icr.task import Diversity, Prompts, draw


class StackedTasks(LinearRegressionTasks):
    """`LinearRegressionTasks` for S pool sizes: y (S, B, K) and w (S, B, D) over one x (B, K, D).

    Args:
        members: the pool sizes M.
        **settings: arguments of `LinearRegressionTasks` except M.
    """

    changeable_arguments = (*LinearRegressionTasks.changeable_arguments, "M", "members")  # a checkpoint is one member's

    def __init__(self, members: Sequence[Diversity], **settings: Any) -> None:
        super().__init__(**settings)
        self.members = list(members)
        self._stacked: dict[str, EvaluationBatch] = {}

    def draw(self, number: int) -> Prompts:
        tasks = [self.task.with_diversity(M) for M in self.members]
        return draw(tasks, self.batch_size, self.seed, number, device=self.device)

    def _evaluation(self, split: str) -> EvaluationBatch:
        if split not in self._stacked:
            each = [self._evaluation_of(self.task.with_diversity(M), split)._asdict() for M in self.members]
            with torch.inference_mode(False):
                kinds = {kind: stack([one[kind] for one in each]) for kind in KINDS}
            self._stacked[split] = EvaluationBatch(**kinds)
        return self._stacked[split]


def stack(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of prompts with the same x as one, whose y, w and predictions have a leading axis."""
    prompts = [evaluation.prompts for evaluation in evaluations]
    y, w = torch.stack([p.y for p in prompts]), torch.stack([p.w for p in prompts if p.w is not None])
    names = evaluations[0].answers
    answers = {name: torch.stack([evaluation.answers[name] for evaluation in evaluations]) for name in names}
    return Evaluation(Prompts(prompts[0].x, y, w), answers)


def select(evaluation: Evaluation, places: Sequence[int]) -> Evaluation:
    """Some of the stacked members, by their positions on the leading axis."""
    answers = {name: answer[places] for name, answer in evaluation.answers.items()}
    return Evaluation(select_prompts(evaluation.prompts, places), answers)


def select_prompts(prompts: Prompts, places: Sequence[int]) -> Prompts:
    """Some of the stacked members' prompts."""
    return Prompts(prompts.x, prompts.y[places], None if prompts.w is None else prompts.w[places])
