"""Base LightningModule of regression models: loss, scores and predictions for any network that reads texts."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.optim import OptimizerConfig
from zoo.tokenizers import Tokenizer
from zoo.training.batches import TextBatch, check_targets, check_text_batch, check_token_ids
from zoo.training.loss_weights import Counts, Loss
from zoo.training.metrics import reset_metrics
from zoo.training.module import ZooModule
from zoo.training.protocols import RegressionNetwork, require
from zoo.training.regression_metrics import (
    GatheredOutputs,
    average_scores,
    scores,
    scores_by_target,
    target_labels,
)

FP32 = torch.finfo(torch.float32)
__all__ = ["Regressor", "scores", "target_fields", "to_json"]


class Regressor(ZooModule):
    """Training of a `RegressionNetwork` on `TextBatch`es, which `zoo.training.batches.collate` makes from `Row`s.

    A subclass implements `losses` and `estimate`. `module(batch)` is `estimate(batch)`.

    Logged: `train_loss`; for val and test `<split>_loss` and each of `zoo.training.regression_metrics.scores`. With
    several targets these scores are means over the targets, and `<split>_<score>/<target>` are those of each target.

    Args:
        network: the model, a torch.nn.Module with the members of `RegressionNetwork`.
        optimizer_config: settings of the optimizer and its schedule.
        n_objectives: K, the number of targets of each text.
        tokenizer: turns text into the network's ids; stored in checkpoints.
        target_names: K names of the targets, for the metrics of several targets. Default: "objective_1" and so on.
    """

    data_arguments: ClassVar[tuple[str, ...]] = ("vocab_size", "tokenizer", "n_objectives", "target_names")
    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        "loss": ("train/loss", "val/loss", "pretrain/loss"),
        "mean absolute error": ("val/mae", "baseline/mae_.*"),
        "mean absolute error / that of the median": ("val/relative_mae", "val_relative_mae/.*"),
        "correlation": ("val/spearman", "val/pearson"),
    }
    hparam_metrics: ClassVar[tuple[str, ...]] = ("val_loss", "val_mae", "val_spearman")
    item = "samples"  # unit of the Throughput callback
    output_fields: tuple[str, ...] = ("loss", "prediction", "target")  # names of the tensors that `evaluate` returns
    model: Any
    gathered: Any

    def __init__(
        self,
        network: RegressionNetwork,
        optimizer_config: OptimizerConfig,
        n_objectives: int = 1,
        tokenizer: Tokenizer | None = None,
        target_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(optimizer_config, tokenizer)
        if target_names is not None and len(target_names) != n_objectives:
            raise UserError(f"target_names has {len(target_names)} names, but n_objectives is {n_objectives}")
        self.model = network
        self.n_objectives = n_objectives
        self.target_labels = target_labels(target_names, n_objectives)
        self.gathered = nn.ModuleDict({split: GatheredOutputs(self.output_fields) for split in ("val", "test")})

    def setup(self, stage: str) -> None:
        super().setup(stage)
        require(self.model, RegressionNetwork)

    def check_data(self, data: Any) -> None:
        """The data must hold texts with numbers, and texts without only where the model pretrains on them."""
        if not hasattr(data, "n_objectives"):
            raise UserError(
                f"{type(data).__name__} has no texts with numbers for {type(self).__name__}: give --data=TextRegression"
            )
        if getattr(data, "unlabelled_texts", None) is not None and "unlabelled_texts" not in self.data_arguments:
            raise UserError(
                f"--data.unlabelled has no effect on {type(self).__name__}, which does not pretrain: drop it"
            )

    def check_inputs(self, batch: Any) -> None:
        """Raises an error for something other than a `TextBatch`; its targets may be unknown."""
        check_text_batch(batch, type(self).__name__)
        if (config := getattr(self.model, "config", None)) is not None:
            check_token_ids(batch.tokens, config.vocab_size)

    def check_batch(self, batch: Any) -> None:
        """Raises an error for something other than a `TextBatch`, or for a batch with the wrong number of targets."""
        self.check_inputs(batch)
        self.check_objectives(batch.targets.shape[1])

    def check_targets(self, targets: Tensor, index: Sequence[int] | Tensor) -> None:
        """Raises UserError if a target (N, K) of the rows `index` (N,) cannot be learned or scored."""
        check_targets(targets, index)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check the batch while it is on the CPU; the targets of rows to predict may be unknown."""
        if isinstance(batch, TextBatch):
            self.check_inputs(batch)
            if not self.trainer.predicting:
                self.check_targets(batch.targets, batch.index)
        return batch

    def check_objectives(self, columns: int) -> None:
        """Raises UserError if the data has another number of targets than the model."""
        if columns != self.n_objectives:
            raise UserError(
                f"the data has {columns} target columns, but the model n_objectives {self.n_objectives}: "
                "make them equal"
            )

    # ---- what a subclass implements

    @abstractmethod
    def losses(self, batch: TextBatch) -> Tensor:
        """(B,) the loss of every row; training minimises their mean."""

    @abstractmethod
    def estimate(self, batch: TextBatch) -> Tensor:
        """(B, K) one number for every row and objective, in the targets' unit."""

    def forward(self, batch: TextBatch) -> Tensor:
        """(B, K) predictions in the targets' unit. Call `eval()` first to switch dropout off."""
        self.check_inputs(batch)
        return self.estimate(batch)

    # ---- training

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        self.check_batch(batch)
        return self.step_loss(batch, Loss("train_loss", self.losses(batch).mean()))

    def loss_counts(self, batch: TextBatch) -> Counts:
        """Rows of a batch."""
        self.check_batch(batch)
        return [len(batch.index)]

    def count(self, batch: TextBatch) -> int:
        """Number of texts in a training batch."""
        return len(batch.index)

    def flops_per_item(self, batch: TextBatch) -> float:
        """Floating-point operations of training on one text, forward and backward."""
        return self.model.flops(batch.tokens.shape[1])

    # ---- evaluation

    def evaluate(self, batch: TextBatch) -> dict[str, Tensor]:
        """A (B, ...) tensor for each of `output_fields`."""
        return {"loss": self.losses(batch), "prediction": self.estimate(batch), "target": batch.targets}

    def compute_metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        """The metrics to log, from arrays (N, ...) of a whole split, one for each of `output_fields`."""
        columns = self.scores_by_target(outputs)
        metrics = {"loss": float(outputs["loss"].mean()), **average_scores(columns, outputs["target"])}
        if self.n_objectives > 1:
            named = zip(self.target_labels, columns, strict=True)
            metrics |= {f"{name}/{label}": score for label, column in named for name, score in column.items()}
        return metrics

    def scores_by_target(self, outputs: dict[str, np.ndarray]) -> list[dict[str, float]]:
        """The scores of each target, from the same arrays."""
        return scores_by_target(outputs["prediction"], outputs["target"])

    def _evaluate_and_gather(self, split: str, batch: TextBatch) -> dict[str, Tensor]:
        # Outputs of all batches are gathered, because some metrics are not means over batches.
        self.check_batch(batch)
        outputs = self.evaluate(batch)
        self.gathered[split].update(**outputs)
        return outputs  # for callbacks that draw them

    def _log_metrics(self, split: str) -> None:
        gathered = self.gathered[split]
        metrics = self.compute_metrics(gathered.compute())
        # sync_dist: GatheredOutputs has synchronised already, so all ranks hold the same values.
        self.log_dict({f"{split}_{name}": self._loggable(value) for name, value in metrics.items()}, sync_dist=True)
        reset_metrics(gathered)

    def _loggable(self, value: float) -> float | Tensor:
        """A metric as it is; in fp64 where it is beyond the range of fp32, in which Lightning stores floats."""
        is_beyond = math.isfinite(value) and value != 0 and not FP32.tiny <= abs(value) <= FP32.max
        if not is_beyond or self.device.type == "mps":  # which has no fp64
            return value
        return torch.tensor(value, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: TextBatch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate_and_gather("val", batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def test_step(self, batch: TextBatch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate_and_gather("test", batch)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def predict_step(self, batch: TextBatch, batch_idx: int) -> list[dict[str, Any]]:
        """For each text "index", its place in the data; "input", the text; "prediction"; and "target" where known."""
        self.check_inputs(batch)
        # Copied to the CPU as a batch: every copy waits for a GPU.
        estimates, targets = self.estimate(batch).cpu(), batch.targets.cpu()
        rows = zip(batch.index.tolist(), batch.texts, estimates, targets, strict=True)
        return [
            {"index": i, "input": text, "prediction": to_json(prediction)} | self.name_fields() | target_fields(target)
            for i, text, prediction, target in rows
        ]

    def name_fields(self) -> dict[str, list[str]]:
        """Fields of a prediction of several targets: "target_names", their names in the order of its lists."""
        return {"target_names": self.target_labels} if self.n_objectives > 1 else {}


def to_json(values: Tensor) -> float | list[float]:
    """Values (K,) as JSON stores them: a number if K is 1, otherwise a list."""
    return values.item() if values.numel() == 1 else values.tolist()


def target_fields(target: Tensor, **others: Tensor) -> dict[str, Any]:
    """Fields of a prediction that depend on its target (K,), "target" and `others`; none if the target is unknown."""
    if target.isnan().any():
        return {}
    return {"target": to_json(target)} | {name: to_json(values) for name, values in others.items()}
