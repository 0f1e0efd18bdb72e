"""Base LightningModule of regression models: loss, scores and predictions for any network that reads texts."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.optim import OptimizerConfig
from zoo.tokenizers import Tokenizer
from zoo.training.batches import TextBatch, check_targets, check_text_batch, check_token_ids
from zoo.training.loss_weights import Counts, Loss
from zoo.training.metrics import reset_metrics
from zoo.training.module import ZooModule
from zoo.training.protocols import RegressionNetwork, require
from zoo.training.regression_metrics import GatheredOutputs, scores

__all__ = ["Regressor", "scores", "target_fields", "to_json"]


class Regressor(ZooModule):
    """Training of a `RegressionNetwork` on `TextBatch`es, which `zoo.training.batches.collate` makes from `Row`s.

    A subclass implements `losses` and `estimate`. `module(batch)` is `estimate(batch)`.

    Logged: `train_loss`; for val and test `<split>_loss` and each of `zoo.training.regression_metrics.scores`.

    Args:
        network: the model, a torch.nn.Module with the members of `RegressionNetwork`.
        optimizer_config: settings of the optimizer and its schedule.
        n_objectives: K, the number of targets of each text.
        tokenizer: turns text into the network's ids; stored in checkpoints.
    """

    data_arguments: ClassVar[tuple[str, ...]] = ("vocab_size", "tokenizer", "n_objectives")
    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        "loss": ("train/loss", "val/loss", "pretrain/loss"),
        "mean absolute error": ("val/mae", "baseline/mae_.*"),
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
    ) -> None:
        super().__init__(optimizer_config, tokenizer)
        self.model = network
        self.n_objectives = n_objectives
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
        return {"loss": float(outputs["loss"].mean()), **scores(outputs["prediction"], outputs["target"])}

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
        self.log_dict({f"{split}_{name}": value for name, value in metrics.items()}, sync_dist=True)
        reset_metrics(gathered)

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
            {"index": i, "input": text, "prediction": to_json(prediction)} | target_fields(target)
            for i, text, prediction, target in rows
        ]


def to_json(values: Tensor) -> float | list[float]:
    """Values (K,) as JSON stores them: a number if K is 1, otherwise a list."""
    return values.item() if values.numel() == 1 else values.tolist()


def target_fields(target: Tensor, **others: Tensor) -> dict[str, Any]:
    """Fields of a prediction that depend on its target (K,), "target" and `others`; none if the target is unknown."""
    if target.isnan().any():
        return {}
    return {"target": to_json(target)} | {name: to_json(values) for name, values in others.items()}
