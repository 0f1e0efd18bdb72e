"""LinearRegressionTasks: in-context regression prompts, drawn on the training device from seed and step."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.datamodules.resumable import ZooDataModule
from zoo.datamodules.sources.table_rows import BadRows
from zoo.errors import UserError, check_choice, check_counts
from zoo.files import regular_file
from zoo.icr.evaluation import KINDS, EvaluationBatch, evaluation
from zoo.icr.predict import Query
from zoo.icr.task import Diversity, Prompts, Task, as_floats, check_prompt
from zoo.private_apis.lightning_api import (
    batches_done,
    batches_done_in_epoch,
    is_epoch_done,
    progress_state,
    resume_counters,
    set_batches_done_in_epoch,
)
from zoo.text_formats.json_text import describe_json_error, parse_json

DRAWN = "drawn"


class LinearRegressionTasks(ZooDataModule):
    """Linear regression in context. Training batches are `Prompts`, validation and test batches `EvaluationBatch`es.

    Batch n of a run consists of the same prompts whenever and wherever it is drawn; x, task and noise come from
    separate random streams. With several processes each takes its part of one draw.

    `--data_dir` names a file of prompts for `predict`: JSON lines with `x_context` (n, D), `y_context` (n,) and
    `x_query` (q, D).

    Args:
        D: number of components of each x, at least 1.
        K: number of pairs (x, y) in each prompt, at least 2.
        sigma2: variance of the noise in y, positive.
        M: number of tasks in the pool, from 1 to max_M, or "inf" for a new task in every prompt.
        max_M: largest M accepted, at least 1; a guard against typing errors.
        task_seed: seed of the pool and of the evaluation prompts; runs with the same value share them.
        data: "drawn" to draw the prompts; for `predict` a file of prompts.
        batch_size: prompts of a training batch on each process, at least 1.
        n_val: validation prompts of each kind ("pretrain": tasks of the pool; "true": new tasks), at least 1.
        n_test: test prompts of each kind, at least 1.
        seed: seed of the training prompts; by default the run's.
        bad_rows: what to do with a line of the file that is not a prompt for the model: "stop" with an error that names
            the line, or "skip" it; the number of lines left out and the first reason are printed.
    """

    changeable_arguments = (*ZooDataModule.changeable_arguments, "max_M", "n_val", "n_test")
    renamed_arguments: ClassVar[dict[str, str]] = {"steps_per_batch": ""}  # removed: a batch is one step

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
        n_val: int = 2048,
        n_test: int = 16384,
        seed: int | None = None,
        bad_rows: Literal["stop", "skip"] = "stop",
    ) -> None:
        check_choice("bad_rows", bad_rows, ("stop", "skip"))
        check_counts(n_val=n_val, n_test=n_test)
        super().__init__(batch_size, seed=seed)
        self.save_hyperparameters(logger=False)
        # The distribution of the prompts, which the model shares.
        self.task = Task(D, K, sigma2, M, max_M, task_seed)
        for field in fields(Task):
            setattr(self, field.name, self.hparams[field.name])  # the command line passes these to the model
        self._evaluations: dict[tuple[Diversity, str], EvaluationBatch] = {}

    def setup(self, stage: str) -> None:
        if stage == "predict" and self.hparams["data"] == DRAWN:
            raise UserError("there are no prompts to predict: give a file of them, --data_dir prompts.jsonl")
        if stage != "predict" and self.hparams["data"] != DRAWN:
            verb = getattr(stage, "value", stage)  # Lightning gives an enumeration
            raise UserError(f"the prompts of {verb} are drawn: drop --data_dir, which is for predict")

    @property
    def device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def draw(self, number: int) -> Prompts:
        """The prompts of one training batch on this process; batches are numbered from 0 over the whole run."""
        # All ranks make the same draw, of which each takes its slice.
        rank, ranks = self.rank_and_ranks()
        prompts = self.task.draw(ranks * self.batch_size, self.seed, number, device=self.device)
        return prompts if ranks == 1 else prompts.rows(slice(rank * self.batch_size, (rank + 1) * self.batch_size))

    def evaluation(self, split: str) -> EvaluationBatch:
        """A copy of all prompts of a split, "val" or "test", with the exact estimators' predictions."""
        n = self.hparams[f"n_{split}"]
        return EvaluationPrompts(n, lambda: self._evaluation(split)).rows(range(n))

    def _evaluation(self, split: str) -> EvaluationBatch:
        """The prompts themselves, which all evaluations share; computed once."""
        return self._evaluation_of(self.task, split)

    def _evaluation_of(self, task: Task, split: str) -> EvaluationBatch:
        """The same for a task with another M."""
        if (task.M, split) not in self._evaluations:
            with torch.inference_mode(False):  # the mode of the first evaluation must not limit the later ones
                kinds = [evaluation(kind, task, self.hparams[f"n_{split}"], split, self.device) for kind in KINDS]
            self._evaluations[task.M, split] = EvaluationBatch(*kinds)
        return self._evaluations[task.M, split]

    def dataset(self, split: str) -> Dataset:
        """The queries of the file for "predict", the evaluation prompts for "val" and "test"."""
        if split == "predict":
            bad = BadRows(self.hparams["bad_rows"])
            queries = read_queries(self.hparams["data"], self.task, bad)
            bad.print_left_out("line")
            return queries  # type: ignore[return-value]
        return EvaluationPrompts(self.hparams[f"n_{split}"], lambda: self._evaluation(split))

    def fingerprint(self, split: str) -> dict[str, Any]:
        if split == "predict":
            content = regular_file(self.hparams["data"]).read_bytes()
            return {"digest": hashlib.blake2b(content, digest_size=8).hexdigest()}
        return {}  # prompts are drawn, and the settings of the draw are compared as options

    def train_dataloader(self) -> "PromptLoader":  # type: ignore[override]
        return PromptLoader(DrawnPrompts(self.task, self.draw), self.trainer)

    def predict_dataloader(self) -> Any:
        self.collate = list
        return super().predict_dataloader()

    def _opener(self, dataset: Dataset) -> Any:
        # Evaluation prompts are on the device already: a torch DataLoader would fetch and stack them one by one.
        if isinstance(dataset, EvaluationPrompts):
            return lambda batches: map(dataset.rows, batches)
        return super()._opener(dataset)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # prompts are drawn on the device, and queries are moved by the model

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"unit": "steps"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "unit" not in state_dict and self.trainer is not None and self.trainer.state.fn == "fit":
            raise UserError(
                "this checkpoint was written when a batch was a block of steps: it cannot be resumed, only evaluated"
            )


class DrawnPrompts(Dataset):
    """The training prompts as a data set: item n is batch n."""

    def __init__(self, task: Task, draw: Callable[[int], Prompts]) -> None:
        self.task, self.draw = task, draw

    def __getitem__(self, number: int) -> Prompts:
        return self.draw(number)


class EvaluationPrompts(Dataset):
    """The n evaluation prompts of a split; `evaluation` computes them when the first are requested."""

    def __init__(self, n: int, evaluation: Callable[[], EvaluationBatch]) -> None:
        self.n, self.evaluation = n, evaluation

    def __len__(self) -> int:
        return self.n

    def rows(self, positions: Sequence[int]) -> EvaluationBatch:
        """The prompts at the given positions as a batch."""
        split = self.evaluation()
        return split.rows(torch.tensor(positions, device=split.true.prompts.x.device))


class PromptLoader:
    """Training batches from the trainer's next batch to its last; without a trainer from 0 on without end.

    Gradients that wait for the rest of their accumulation window are not in checkpoints. A run that is resumed inside a
    window therefore repeats the window from its first batch. A run that is resumed with another batch size, number of
    processes or accumulation continues with the number of the next batch, so that no prompt is drawn twice.
    """

    def __init__(self, dataset: DrawnPrompts, trainer: Any = None) -> None:
        self.dataset, self._trainer = dataset, trainer
        # Number of the next batch when the trainer had finished `_batches_before_start` batches.
        self._start = self._batches_before_start = 0

    def __iter__(self) -> Iterator[Prompts]:
        # Read the trainer when the first batch is requested: a resumed trainer knows its step only then.
        number, last = self._next(), float("inf")
        if self._trainer is not None and self._trainer.max_steps >= 0:
            steps = self._trainer.max_steps - self._trainer.global_step
            last = number + steps * self._trainer.accumulate_grad_batches
        while number < last:
            yield self.dataset[number]
            number += 1

    def _next(self) -> int:
        """Number of the batch after the finished ones."""
        if self._trainer is None:
            return self._start
        return self._start + batches_done(self._trainer) - self._batches_before_start

    def state_dict(self) -> dict[str, int]:
        """The number of the next batch ("number") and `progress_state`."""
        progress = progress_state(self._trainer)
        return {"number": self._next() - progress["unused"]} | progress

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue with the stored number."""
        resume_counters(self._trainer, state)
        self._batches_before_start = batches_done(self._trainer)
        self._start = state.get("number", self._batches_before_start)
        if not is_epoch_done(self._trainer):  # start an accumulation window
            finished = batches_done_in_epoch(self._trainer)
            set_batches_done_in_epoch(self._trainer, finished - finished % self._trainer.accumulate_grad_batches)


def read_queries(path: str, task: Task, bad: BadRows | None = None) -> list[Query]:
    """The prompts in a file of JSON lines.

    Args:
        path: the file.
        task: D and K of the model.
        bad: what to do with lines that are not prompts; by default the first one is an error.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: a line is not a prompt, or does not fit the task; the message names the line.
    """
    queries: list[Query] = []
    bad, index = bad or BadRows("stop"), -1
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file of prompts {path}")
    # Each line that is not blank is one prompt; a byte that is not UTF-8 becomes a surrogate, which is not JSON.
    with regular_file(path).open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            index += 1  # of the prompt in the file
            try:
                parts = _read_prompt(line)
                check_prompt(task, *parts)
            except UserError as error:
                bad.refuse(f"{path} line {number}", str(error))
                continue
            x_context, y_context, x_query = (part.float() for part in parts)
            queries.append(Query(index, x_context, y_context, x_query, number))
    if not queries:
        raise UserError(f"{path} holds no prompts{bad.first()}")
    return queries


def _read_prompt(line: str) -> list[Tensor]:
    """x_context, y_context and x_query of a line of JSON.

    Raises:
        UserError: it is not a JSON object with these three lists of numbers.
    """
    row: Any = None
    reason = None
    try:
        row = parse_json(line)
    except ValueError as error:
        reason = describe_json_error(error, with_line=False)
    names = ("x_context", "y_context", "x_query")
    missing = [name for name in names if not isinstance(row, dict) or not isinstance(row.get(name), list)]
    if missing:
        raise UserError(
            "is not a prompt, a JSON object with x_context, y_context and x_query that are lists of numbers "
            f"({reason or f'no list {missing[0]}'})"
        )
    return [as_floats(name, row[name]) for name in names]
