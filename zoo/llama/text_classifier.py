"""TextClassifier: base LightningModule of text classifiers with metrics, confusion matrix and prediction rows."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from zoo.errors import UserError
from zoo.llama.figures import draw_confusion_matrix
from zoo.llama.model import Llama
from zoo.optim import OptimizerConfig
from zoo.tokenizers import Tokenizer
from zoo.training.batches import TextBatch, check_targets, check_text_batch, check_token_ids
from zoo.training.metrics import SummedLoss, reset_metrics
from zoo.training.module import ZooModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TextClassifier(ZooModule):
    """Evaluation and prediction of a classifier of texts by a Llama.

    Batches are `TextBatch`es. `targets` (B, 1) holds the number of each row's class, an index of `label_names`; it may
    be NaN (unknown) in prediction.

    Logged for val and test: `<split>_loss` in nats per text, `<split>_accuracy`, `<split>_macro_f1`.

    Args:
        model: the network.
        label_names: names of the C classes.
        label_spellings: how files write each class, (C,); default: its name.
        optimizer_config: settings of the optimizer and its schedule.
        tokenizer: turns text into the network's ids.
    """

    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        "loss in nats per text": ("train/loss", "val/loss"),
        "accuracy": ("val/accuracy", "baseline/accuracy_.*"),
        "macro F1": ("val/macro_f1",),
    }
    hparam_metrics: ClassVar[tuple[str, ...]] = ("val_loss", "val_accuracy")
    losses: Any
    scores: Any
    confusion_matrices: Any

    def __init__(
        self,
        model: Llama,
        label_names: list[str],
        label_spellings: list[str] | None,
        optimizer_config: OptimizerConfig,
        tokenizer: Tokenizer | None,
    ) -> None:
        super().__init__(optimizer_config, tokenizer)
        self.model = model
        self.label_names = label_names
        self.label_spellings = label_spellings or label_names
        if len(self.label_spellings) != len(label_names):
            given, needed = len(self.label_spellings), len(label_names)
            raise UserError(f"label_spellings has {given} entries for {needed} classes: give {needed}")
        self.confusion_matrix: np.ndarray | None = None  # (C, C) counts of the last evaluation: true class, predicted
        n_classes, splits = len(label_names), ("val", "test")
        self.losses = nn.ModuleDict({split: SummedLoss() for split in splits})
        self.confusion_matrices = nn.ModuleDict({split: MulticlassConfusionMatrix(n_classes) for split in splits})
        scores = {
            "accuracy": MulticlassAccuracy(n_classes, average="micro"),
            "macro_f1": MulticlassF1Score(n_classes, average="macro"),
        }
        self.scores = nn.ModuleDict({s: MetricCollection({**scores}, prefix=f"{s}_").clone() for s in splits})

    @property
    def positions_after_text(self) -> int:
        """Positions of the context that the model needs after the tokens of a text."""
        return 0

    def check_data(self, data: Any) -> None:
        """The data must have the model's classes, and its longest texts must fit into the context."""
        if data.label_names != self.label_names:
            raise UserError(
                f"the data's classes are {data.label_names}, but the model's are {self.label_names}: set "
                "--data.label_names to those of the model"
            )
        available = self.model.config.max_seq_len - self.positions_after_text
        if data.max_input_len > available:
            reserved = f" of which {self.positions_after_text} are for class names" if self.positions_after_text else ""
            raise UserError(
                f"--data.max_input_len {data.max_input_len} exceeds the model's context of "
                f"{self.model.config.max_seq_len} tokens{reserved}: set --data.max_input_len to at most {available}"
            )

    @abstractmethod
    def forward(self, batch: TextBatch | Tensor) -> Tensor:
        """Logits (B, C) of a batch, or of tokens (B, T) without padding."""

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check the batch while it is on the CPU; the classes of rows to predict may be unknown."""
        check_text_batch(batch, type(self).__name__)
        check_token_ids(batch.tokens, self.model.config.vocab_size)
        if not self.trainer.predicting:
            self.check_targets(batch.targets[:, :1], batch.index)
        return batch

    def check_targets(self, targets: Tensor, index: Sequence[int] | Tensor) -> None:
        """Raises UserError if a target (N, 1) of the rows `index` (N,) is not the number of a class."""
        check_targets(targets, index, len(self.label_names), "label_names of length")

    # ---- evaluation

    def _update(self, split: str, batch: TextBatch) -> None:
        self.score(split, self(batch), batch.targets[:, 0].long())

    def score(self, split: str, logits: Tensor, target: Tensor) -> None:
        """Add logits (B, C) and classes (B,) to the metrics of a split."""
        self.losses[split].update(F.cross_entropy(logits, target), torch.tensor(len(target)))
        self.scores[split].update(logits, target)
        self.confusion_matrices[split].update(logits, target)

    def _log_metrics(self, split: str) -> None:
        values = {f"{split}_loss": self.losses[split].compute()["loss"]} | self.scores[split].compute()
        # sync_dist: the metrics have synchronised already, so all ranks hold the same values.
        self.log_dict(values, prog_bar=True, sync_dist=True)
        self.confusion_matrix = self.confusion_matrices[split].compute().cpu().numpy()
        reset_metrics(self.losses[split], self.scores[split], self.confusion_matrices[split])

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        self._update("val", batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def test_step(self, batch: TextBatch, batch_idx: int) -> None:
        self._update("test", batch)

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def figures(self) -> "dict[str, Figure]":
        """The confusion matrix of the last evaluation, for the `Plots` callback; empty before the first one."""
        if self.confusion_matrix is None:
            return {}
        accuracy = np.trace(self.confusion_matrix) / max(self.confusion_matrix.sum(), 1)
        title = f"accuracy {accuracy:.3f}"
        return {"confusion": draw_confusion_matrix(self.confusion_matrix, self.label_names, title)}

    def predict_step(self, batch: TextBatch, batch_idx: int) -> list[dict[str, Any]]:
        """Classify texts.

        Returns:
            For each row "index"; "input", the text; "label", the predicted class as files write it; "name", the class;
            "probabilities" by class name; and "gold", the true class as files write it, where it is known.
        """
        probabilities = self(batch).softmax(-1).cpu()  # (B, C)
        rows = []
        for index, text, p, target in zip(
            batch.index.tolist(), batch.texts, probabilities, batch.targets[:, 0].cpu(), strict=True
        ):
            best = int(p.argmax())
            row = {"index": index, "input": text, "label": self.label_spellings[best], "name": self.label_names[best]}
            row["probabilities"] = dict(zip(self.label_names, p.tolist(), strict=True))
            rows.append(row if target.isnan() else row | {"gold": self.label_spellings[int(target)]})
        return rows

    # ---- checkpoints

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        stored = checkpoint.get("hyper_parameters", {}).get("label_names", self.label_names)
        if stored != self.label_names:
            raise UserError(
                f"this checkpoint was trained with the classes {stored}, in this order, not {self.label_names}: drop "
                "--data.label_names, or give each label one of the stored names"
            )


def required_label_names(label_names: list[str] | None) -> list[str]:
    """`label_names`, which must be a list of at least two different names.

    Raises:
        UserError: it is something else; it is empty for data without classes.
    """
    if not label_names:
        raise UserError(
            "label_names is empty, but a classifier needs the names of its classes: use labelled data (--data=Reviews)"
        )
    is_list = isinstance(label_names, list | tuple) and all(isinstance(name, str) and name for name in label_names)
    if not is_list or len(label_names) < 2 or len(set(label_names)) < len(label_names):
        raise UserError(f"label_names must be a list of at least two different names of classes, not {label_names!r}")
    return label_names
