"""Prompts of linear regression, drawn where the model trains: there is no data but a seed."""

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.datamodules.resumable import ZooDataModule
from zoo.errors import UserError
from zoo.icr.evaluation import KINDS, Evaluation, evaluation
from zoo.icr.task import Diversity, Prompts, Task, check_prompt

DRAWN = "drawn"
PROMPT = ("x_context", "y_context", "x_query")


class LinearRegressionTasks(ZooDataModule):
    """Linear regression in context; a training batch is a block of steps, whose prompts the model draws one by one.

    Step n of a run draws the same prompts whenever and wherever it is taken, from three streams for x, task and noise;
    with several processes each takes its part of one draw. What Lightning counts as batches (`val_check_interval`,
    `log_every_n_steps`) are blocks; `max_steps` and the learning rate count steps.

    `--data_dir` gives prompts to predict: JSON lines with `x_context` (n, D), `y_context` (n,) and `x_query` (q, D).

    Args:
        D, K, sigma2, M, max_M, task_seed: what is asked, as in zoo.icr.task; the model takes them over.
        data: "drawn", or for predictions a file of prompts.
        batch_size: prompts of a step, on each process.
        steps_per_batch: steps of a block; more of them cost Lightning less.
        n_val, n_test: prompts of each kind ("pretrain", with tasks of the pool, and "true", with new ones).
        seed: of the training prompts; by default the run's.
    """

    def __init__(
        self,
        D: int = 8,
        K: int = 16,
        sigma2: float = 0.125,
        M: Diversity = 64,
        max_M: int = 32768,
        task_seed: int = 0,
        data: str = DRAWN,
        batch_size: int = 256,
        steps_per_batch: int = 10,
        n_val: int = 2048,
        n_test: int = 16384,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, seed=seed)
        self.save_hyperparameters(logger=False)
        for name in ("steps_per_batch", "n_val", "n_test"):
            if self.hparams[name] < 1:
                raise UserError(f"{name} must be at least 1, not {self.hparams[name]}")
        self.task = Task(D, K, sigma2, M, max_M, task_seed)
        for field in fields(Task):
            setattr(self, field.name, self.hparams[field.name])  # for the command line, which hands them to the model
        self._made: dict[tuple[Diversity, str], dict[str, Evaluation]] = {}

    def setup(self, stage: str) -> None:
        if stage == "predict" and self.hparams["data"] == DRAWN:
            raise UserError("there are no prompts to predict: give a file of them, --data_dir prompts.jsonl")
        if stage != "predict" and self.hparams["data"] != DRAWN:
            raise UserError(f"the prompts of {stage} are drawn: drop --data_dir, which is for predict")

    @property
    def device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def draw(self, step: int) -> Prompts:
        """The prompts of one training step on this process."""
        rank, ranks = self.rank_and_ranks()
        prompts = self.task.draw(ranks * self.batch_size, self.seed, step, device=self.device)
        return prompts.rows(slice(rank * self.batch_size, (rank + 1) * self.batch_size))

    def evaluation(self, split: str) -> dict[str, Evaluation]:
        """The prompts of each kind to evaluate on, with their references, made once."""
        return self.evaluation_of(self.task, split)

    def evaluation_of(self, task: Task, split: str) -> dict[str, Evaluation]:
        """The same for a task with another M."""
        if (task.M, split) not in self._made:
            n, device = self.hparams[f"n_{split}"], self.device
            self._made[task.M, split] = {kind: evaluation(kind, task, n, split, device) for kind in KINDS}
        return self._made[task.M, split]

    def train_dataloader(self) -> "Blocks":  # type: ignore[override]
        return Blocks(self.trainer, self.hparams["steps_per_batch"])

    def dataset(self, split: str) -> Dataset:
        """The places of the prompts in `evaluation(split)`; for predictions the prompts of the file."""
        if split == "predict":
            return read_prompts(self.hparams["data"], self.task)  # type: ignore[return-value]
        return range(self.hparams[f"n_{split}"])  # type: ignore[return-value]

    def predict_dataloader(self) -> Any:
        self.collate = list
        return super().predict_dataloader()


class Blocks:
    """The numbers of the steps to take, from where the trainer stands to its end, a block at a time."""

    def __init__(self, trainer: Any, steps: int) -> None:
        self._trainer, self._steps = trainer, steps

    def __iter__(self) -> Iterator[Tensor]:
        step = self._trainer.global_step  # looked up at the first block, when a resumed trainer knows it
        last = self._trainer.max_steps if self._trainer.max_steps >= 0 else float("inf")
        while step < last:
            block = torch.arange(step, int(min(step + self._steps, last)))
            yield block
            step += len(block)


def read_prompts(path: str, task: Task) -> list[dict[str, Any]]:
    """The prompts of a file of JSON lines: dicts of `index`, `x_context` (n, D), `y_context` (n,), `x_query` (q, D).

    Raises:
        ValueError: a line is no such prompt, or does not fit the task; the sentence names it.
    """
    prompts: list[dict[str, Any]] = []
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file of prompts {path}")
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                parts = [torch.tensor(row[name], dtype=torch.float32) for name in PROMPT]
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path} line {number} is no prompt, a JSON object with x_context, y_context and x_query that are"
                    f" lists of numbers ({error})"
                ) from error
            try:
                check_prompt(task, *parts)
            except ValueError as error:
                raise UserError(f"{path} line {number}: {error}") from error
            prompts.append({"index": len(prompts), **dict(zip(PROMPT, parts, strict=True))})
    if not prompts:
        raise UserError(f"{path} holds no prompts")
    return prompts
