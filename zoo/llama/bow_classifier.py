"""BowClassifier: base LightningModule of classifiers that add the logits of a bag of words to those of their head."""

import hashlib
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from zoo.baselines.bag_of_words import BowKind
from zoo.errors import UserError, check_choice, check_number
from zoo.layers.widen import widen
from zoo.llama.classifier_head import ClassifierHead
from zoo.llama.logit_scales import fit_scales as fitted_scales
from zoo.llama.text_classifier import TextClassifier
from zoo.private_apis.lightning_api import is_fitting, is_validating
from zoo.training.batches import TextBatch
from zoo.training.regression_metrics import GatheredOutputs

if TYPE_CHECKING:
    from zoo.baselines import BowFeatures

BowRows = Literal["train", "all"]


class BowClassifier(TextClassifier):
    """Classifier whose logits are those of a head plus, by option, those of a bag of words times a trained number.

    A subclass calls `add_bag` in its constructor and sets `head`. With `fit_scales` each validation of a fit first fits
    the factors of both parts to the rows that it scores, so that the checkpoint of these weights has them.
    """

    bow_features: "BowFeatures | None"
    logit_scales: Tensor | None
    head: ClassifierHead

    def add_bag(self, kind: BowKind | None, C: float, rows: BowRows, fit_scales: bool) -> None:
        """Add the bag of words and the factors of the logits.

        Args:
            kind: kind of `BowFeatures`; None for no bag.
            C: inverse penalty of its logistic regression.
            rows: rows that it is fitted to: "train" or "all", those for validation too.
            fit_scales: fit the factors of the logits in validation.
        """
        check_number("bow_C", C, "above 0", lambda penalty: penalty > 0)
        check_choice("bow_rows", rows, get_args(BowRows))
        self.bow_rows = rows
        self.bow_features = None if kind is None else _new_bow_features(len(self.label_names), kind, C)
        if self.bow_features is not None:
            self.bow_weight = nn.Parameter(torch.ones(()))
        # Logits (C,) from fits without the row, by the index of a training row and by the text of a validation row.
        self._held_out_logits: dict[int, Tensor] | None = None
        self._held_out_of_text: dict[str, Tensor] = {}
        # Factors of the head's and the bag's logits, and what they are fitted to.
        self.register_buffer("logit_scales", torch.ones(2) if fit_scales else None)
        self._validation_parts: list[dict[str, Tensor]] = []

    # ---- logits

    def classify(self, hidden: Tensor, padding_mask: Tensor | None, bow_logits: Tensor | None) -> Tensor:
        """Logits (B, C) of hidden states (B, T, dim) and bag-of-words logits (B, C)."""
        head, bag = self._parts(hidden, padding_mask, bow_logits)
        return self._combine(head, bag, None if self.training else self.logit_scales)

    def bow_logits(self, batch: TextBatch) -> Tensor | None:
        """Bag-of-words logits (B, C), in validation those from fits without the text; None without a bag of words."""
        if self.bow_features is None or batch.bow_logits is not None:
            return batch.bow_logits
        logits = self.bow_features.logits_on_cpu(batch.texts)
        if self._held_out_of_text and is_validating(self):
            for i, text in enumerate(batch.texts):
                if (held_out := self._held_out_of_text.get(_digest(text))) is not None:
                    logits[i] = held_out
        return logits

    def training_bow_logits(self, batch: TextBatch) -> Tensor | None:
        """Bag-of-words logits (B, C) of training rows, from fits that did not include the row."""
        if self.bow_features is None or batch.bow_logits is not None:
            return batch.bow_logits
        if self._held_out_logits is None:
            return self.bow_features.logits_on_cpu(batch.texts)
        return torch.stack([self._held_out_logits[i] for i in batch.index.tolist()])

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Compute the bag of words, whose texts and weights are read on the CPU, before the batch is moved."""
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        if self.bow_features is None:
            return batch
        is_training = self.trainer.training
        return batch._replace(bow_logits=self.training_bow_logits(batch) if is_training else self.bow_logits(batch))

    def _parts(
        self, hidden: Tensor, padding_mask: Tensor | None, bow_logits: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The logits (B, C) of the head, and those of the bag of words times their weight."""
        head = widen(self.head(hidden, padding_mask))
        return head, None if bow_logits is None else self.bow_weight * bow_logits.to(head)

    @staticmethod
    def _combine(head: Tensor, bag: Tensor | None, scales: Tensor | None) -> Tensor:
        if scales is not None:
            head, bag = scales[0] * head, None if bag is None else scales[1] * bag
        return head if bag is None else head + bag

    # ---- training and validation

    def on_train_start(self) -> None:
        """Fit the bag of words to the rows of the training loader's dataset, and of the validation loader's."""
        if self.bow_features is None:
            return
        texts, targets, indices = _rows_of(self.trainer.train_dataloader)
        self.check_targets(torch.from_numpy(targets)[:, None], indices)
        others: list[str] = []
        if self.bow_rows == "all" and self.trainer.val_dataloaders:
            others, more, other_indices = _rows_of(
                self.trainer.val_dataloaders, "bow_rows=all", "set bow_rows to train"
            )
            self.check_targets(torch.from_numpy(more)[:, None], other_indices)
            targets = np.concatenate([targets, more])
        classes = targets.astype(int)
        if self.trainer.ckpt_path is None:
            logits = self.bow_features.fit([*texts, *others], classes)
        else:  # a resumed run: the checkpoint has restored the fitted weights
            logits = self.bow_features.held_out_logits([*texts, *others], classes)
        self._held_out_logits = dict(zip(indices, logits, strict=False))
        self._held_out_of_text = dict(zip(map(_digest, others), logits[len(texts) :], strict=True))

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        self._validation_parts.clear()  # those of a validation that was interrupted

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        if self.logit_scales is None or not is_fitting(self) or self.trainer.sanity_checking:
            super().validation_step(batch, batch_idx)
            return
        head, bag = self._parts(self.model.hidden(batch.tokens), batch.padding_mask, self.bow_logits(batch))
        bag = torch.zeros_like(head) if bag is None else bag
        self._validation_parts.append({"head": head, "bag": bag, "targets": batch.targets[:, 0]})

    def on_validation_epoch_end(self) -> None:
        """Fit the factors of the logits, and score the rows with them."""
        if self.logit_scales is not None and self._validation_parts:
            rows = GatheredOutputs(("head", "bag", "targets")).to(self.device)
            for part in self._validation_parts:
                rows.update(**part)
            scales = fitted_scales(*(torch.from_numpy(values) for values in rows.compute().values()))
            self.logit_scales.copy_(torch.tensor(scales, dtype=torch.float64, device="cpu"))
            for part in self._validation_parts:
                self.score("val", self._combine(part["head"], part["bag"], self.logit_scales), part["targets"].long())
            self._validation_parts.clear()
        super().on_validation_epoch_end()

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._held_out_of_text:
            digests, logits = zip(*self._held_out_of_text.items(), strict=True)
            checkpoint["bow_validation"] = {"digests": list(digests), "logits": torch.stack(logits)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "bow_validation" in checkpoint:
            self._held_out_of_text = _checked(checkpoint["bow_validation"], len(self.label_names))


def _checked(stored: Any, n_classes: int) -> dict[str, Tensor]:
    """Held-out logits (C,) by the digest of a text, from a checkpoint.

    Raises:
        UserError: they have another structure.
    """
    parts: dict[str, Any] = stored if isinstance(stored, dict) else {}
    digests: Any = parts.get("digests")
    logits: Any = parts.get("logits")
    is_valid = (
        isinstance(digests, list)
        and all(isinstance(digest, str) for digest in digests)
        and isinstance(logits, Tensor)
        and logits.is_floating_point()
        and logits.shape == (len(digests), n_classes)
        and logits.isfinite().all()
    )
    if not is_valid:
        raise UserError(
            "the bag-of-words logits of the validation rows in this checkpoint are damaged: use another one"
        )
    return dict(zip(digests, logits.float(), strict=True))  # naive Bayes has saved float64


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _new_bow_features(n_classes: int, kind: BowKind, C: float) -> "BowFeatures":
    from zoo.baselines import BowFeatures  # imports scikit-learn, which takes a second

    return BowFeatures(n_classes, kind, C)


def _rows_of(
    loader: Any, option: str = "bow_features", remedy: str = "set bow_features to None"
) -> tuple[list[str], np.ndarray, list[int]]:
    """The texts, targets (N,) and indices of all rows of a loader's dataset.

    Args:
        loader: the loader.
        option: what needs the rows, for the error message.
        remedy: how to do without them, for the error message.

    Raises:
        UserError: the loader's dataset is not map-style, or two rows have the same index.
    """
    dataset: Any = getattr(loader, "dataset", None)
    is_iterable = isinstance(dataset, IterableDataset)
    if is_iterable or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        kind = "training" if option == "bow_features" else "single validation"
        raise UserError(f"{option} needs a {kind} loader with a map-style dataset: {remedy}")
    if hasattr(dataset, "texts") and hasattr(dataset, "targets"):  # whole columns, without tokenizing
        return dataset.texts, np.asarray(dataset.targets, dtype=float)[:, 0], list(range(len(dataset.texts)))
    rows = [dataset[i] for i in range(len(dataset))]
    indices = [row.index for row in rows]
    if len(set(indices)) < len(indices):
        raise UserError("bow_features needs training rows with different indices: give each Row its own index")
    return [row.text for row in rows], np.array([row.targets[0] for row in rows], dtype=float), indices
