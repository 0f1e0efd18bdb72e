"""Llama in Lightning as a text classifier: LlamaClassifier trains all weights, a head alone, or LoRA."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor

from zoo.baselines.bag_of_words import BowKind
from zoo.console.argument_names import argument_names
from zoo.errors import UserError, check_choice, check_counts, check_number, check_weight
from zoo.layers.linear_nll import IGNORED, linear_nll
from zoo.layers.lora import add_lora
from zoo.layers.widen import widen
from zoo.llama.bow_classifier import BowClassifier, BowRows
from zoo.llama.checkpoints import digest, new_or_loaded
from zoo.llama.classifier_defaults import bow_trials, choose_settings
from zoo.llama.classifier_head import ClassifierHead, Pooling
from zoo.llama.model import NETWORK_ARGUMENTS, LlamaConfig
from zoo.llama.module import LlamaSettings
from zoo.llama.text_classifier import required_label_names
from zoo.llama.training_flops import training_flops
from zoo.private_apis.lightning_api import is_fitting
from zoo.tokenizers import Tokenizer
from zoo.training.batches import TextBatch, check_text_batch
from zoo.training.choices import Choice, by_group, given_arguments, settings_of
from zoo.training.fixed_arguments import check_fixed, field_names
from zoo.training.given_settings import check_argument_names, settings_of_model
from zoo.training.initial_weights import check_tokenizer
from zoo.training.language_model import required_vocab_size
from zoo.training.loss_weights import Counts, Loss
from zoo.training.settings import part
from zoo.weights import find_weights, is_project_weights

METHODS = ("full", "head", "lora")


class LlamaClassifier(BowClassifier):
    """Llama fine-tuned as a text classifier: all weights, a linear head alone, or low-rank updates (LoRA).

    Logged: `train_loss`, and for val and test `<split>_loss`, `<split>_accuracy` and `<split>_macro_f1`. The `Plots`
    callback draws the confusion matrix. With method "head" or "lora" a checkpoint stores only what was trained, and the
    path of the pretrained weights, which must exist when the checkpoint is loaded; `zoo.llama.export_classifier` writes
    a checkpoint that needs no other file.

    Args:
        label_names: names of the classes, at least two different ones; the command line takes them from the data.
        method: what is trained: "full", all weights; "head", a linear map of the hidden states; "lora", the linear map
            and low-rank updates of the matrices in `lora_targets`. The last two need pretrained weights.
        weights: file or folder of pretrained weights to start from: a llama2.c `.bin` or `.pt`, a Hugging Face folder
            or a checkpoint of the zoo, also as zoo:NAME. Its architecture replaces the settings here, except dropout
            and gradient_checkpointing. Default: random weights.
        base: path of the pretrained weights of a checkpoint by "head" or "lora", where they have moved since training.
            Default: the path stored in the checkpoint.
        pooling: how the hidden states of a text become one vector: "last", the last token's state; "mean", the mean
            over tokens; "attention", a mean weighted by the softmax of products with a trained vector.
        head_dropout: dropout probability of the pooled vector, in [0, 1).
        lora_rank: rank of the updates, at least 1; used with method=lora only.
        lora_alpha: the update is multiplied by lora_alpha / lora_rank; any finite number.
        lora_targets: names of the adapted matrices, separated by commas: wqkv, wo, w13, w2, and output where the
            embeddings are not tied.
        lm_weight: weight of the next-token loss on the same texts, which is added to the classification loss, at least
            0; 0 turns it off.
        bow_features: add the logits of a bag-of-words classifier, times a trained number: logistic regression on TF-IDF
            of words and pairs of words, "tfidf"; of sequences of characters, "chars"; of both, "words_and_chars"; or
            "naive_bayes"; or null for none. It is fitted to the training texts when training starts.
        bow_C: inverse penalty of that logistic regression, above 0; larger values fit the training texts more closely.
        bow_rows: rows that the bag of words is fitted to: "train"; or "all", those for validation too. Validation uses
            logits from fits without the row in both cases.
        fit_scales: fit factors of the head's and the bag's logits to the validation rows in each validation of a fit,
            and use them in evaluation and prediction.
        layer_decay: the learning rate of each layer is this share of the next layer's, in (0, 1]; 1 gives all layers
            the rate `lr`.
        vocab_size: number of token ids; the command line sets it from the data's tokenizer.
        tokenizer: the tokenizer of the data, stored in checkpoints; the command line takes it from the data.
        label_spellings: how files write each class, in the order of `label_names`, for predictions; the command
            line takes them from the data. Default: label_names.
        **settings: the fields of `LlamaConfig` and `OptimizerConfig`.
    """

    data_arguments: ClassVar[tuple[str, ...]] = ("vocab_size", "tokenizer", "label_names", "label_spellings")
    fixed_arguments: ClassVar[tuple[str, ...]] = (
        *BowClassifier.fixed_arguments,
        *field_names(LlamaConfig, "dropout", "gradient_checkpointing"),
        "method",
        "pooling",
        "lora_rank",
        "lora_alpha",
        "lora_targets",
        "bow_features",
        "bow_C",
        "bow_rows",
        "fit_scales",
        "layer_decay",
    )
    network_arguments: ClassVar[tuple[str, ...]] = (*NETWORK_ARGUMENTS, "pooling", "lora_alpha", "bow_features")
    renamed_arguments: ClassVar[dict[str, str]] = {
        "bag": "bow_features",
        "bag_c": "bow_C",
        "normalize": "it is an option of LlamaZeroShot: set --model LlamaZeroShot",
        "calibrate": "it is an option of LlamaZeroShot: set --model LlamaZeroShot",
        "compat": "it is LlamaZeroShot's option course_scoring: set --model LlamaZeroShot",
    }
    item = "samples"  # unit of the Throughput callback

    def __init__(
        self,
        label_names: list[str],
        method: str = "full",
        weights: str | None = None,
        base: str | None = None,
        pooling: Pooling = "last",
        head_dropout: float = 0.3,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_targets: str = "wqkv,wo,w13,w2",
        lm_weight: float = 0.0,
        bow_features: BowKind | None = None,
        bow_C: float = 3.0,
        bow_rows: BowRows = "train",
        fit_scales: bool = False,
        layer_decay: float = 1.0,
        vocab_size: int | None = None,
        tokenizer: Tokenizer | None = None,
        label_spellings: list[str] | None = None,
        **settings: Any,
    ) -> None:
        names = required_label_names(label_names)
        _check_method(method)
        check_weight("lm_weight", lm_weight)
        check_counts(lora_rank=lora_rank)
        check_number("lora_alpha", lora_alpha, "finite", math.isfinite)
        check_number("layer_decay", layer_decay, "above 0 and at most 1", lambda share: 0 < share <= 1)
        stores_adapter_only = method in ("head", "lora")
        source = _pretrained_weights(method, weights, base) if stores_adapter_only else weights
        is_size_given = vocab_size is not None or tokenizer is not None
        size = required_vocab_size(vocab_size, tokenizer, "LlamaClassifier") if is_size_given or not source else None
        config = LlamaSettings(vocab_size=LlamaConfig.vocab_size if size is None else size, **settings)
        if layer_decay < 1 and config.optimizer == "muon":
            raise UserError("layer_decay has no effect on matrices under optimizer=muon: set layer_decay to 1")
        check_tokenizer(source, tokenizer)
        model = new_or_loaded(part(config, LlamaConfig), source, size)
        super().__init__(model, names, label_spellings, config, tokenizer)
        self.save_hyperparameters(ignore=["tokenizer"])
        self.hparams["vocab_size"] = model.config.vocab_size  # it may have come from the tokenizer
        if source:  # a checkpoint of this module must not need the file that it started from, except an adapter's
            path = source if is_project_weights(source) else os.path.abspath(source)
            stored_base = {"base": path} if stores_adapter_only else {}
            self.hparams.update(asdict(model.config) | {"weights": None} | stored_base)

        # Choose what is trained.
        self.stores_adapter_only = stores_adapter_only
        if stores_adapter_only:
            self.base_digest = digest(model)
            model.requires_grad_(False)
        if method == "lora":
            add_lora(model, lora_rank, lora_alpha, [name.strip() for name in lora_targets.split(",")])
        if not model.config.tie_embeddings and not lm_weight:
            # The output matrix gets no gradient, for which several processes would wait.
            model.output.requires_grad_(False)

        self.layer_decay, self.lm_weight = layer_decay, lm_weight
        self.add_bag(bow_features, bow_C, bow_rows, fit_scales)
        self.head = ClassifierHead(model.config.dim, len(names), pooling, head_dropout)

    @classmethod
    def choose_settings(cls, data: Any, given: Mapping[str, Any]) -> list[Choice]:
        """Settings that follow from the data, by the rules in `zoo.llama.classifier_defaults`.

        Bags of words are cross-validated on the training rows, which takes up to a minute.

        Args:
            data: a data module with `label_names`, `statistics()` and `training_rows()`.
            given: the settings that are already decided, by option.

        Raises:
            UserError: the data does not consist of texts with labels.
        """
        if not hasattr(data, "training_rows"):
            raise UserError(f"{type(data).__name__} has no texts with labels for {cls.__name__}: give --data=Reviews")
        (texts, targets), n_classes = data.training_rows(), len(data.label_names)
        if n_classes > max(2, len(texts) // 2):
            raise UserError(
                f"the data has {n_classes} different labels ({data.label_names[0]!r}) for {len(texts)} training rows: "
                "set --data.label_column to the column of the classes (numbers are predicted by --config regress_lm)"
            )
        return choose_settings(data.statistics(), bow_trials(texts, targets, n_classes, given), given)

    @classmethod
    def from_data(cls, data: Any, given: Mapping[str, Any] | None = None) -> "tuple[LlamaClassifier, Any, dict]":
        """A new classifier with the settings that `choose_settings` chooses.

        Args:
            data: a data module as for `choose_settings`, with the arguments of its constructor in `hparams`; those that
                were given to it are kept.
            given: settings that are decided already, by option: {"model.dim": 128, "trainer.max_steps": 500}.

        Returns:
            The classifier, the data module to train it with, and arguments for `lightning.Trainer`.

        Raises:
            UserError: the data does not consist of texts with labels, or a setting does not exist.
        """
        given = {f"data.{name}": value for name, value in given_arguments(data).items()} | dict(given or {})
        groups = by_group(given)
        for group, owner in (("model", cls), ("data", type(data)), ("trainer", Trainer)):
            check_argument_names(owner, groups[group])
        with argument_names():
            given = settings_of_model(cls, data, groups["model"]) | given
            groups = by_group(given | settings_of(cls.choose_settings(data, given)))
            data = type(data)(**{**data.hparams, **groups["data"]})
            model = cls(**{name: getattr(data, name) for name in cls.data_arguments}, **groups["model"])
        return model, data, groups["trainer"]

    def forward(self, batch: TextBatch | Tensor) -> Tensor:
        """Logits (B, C) of a batch, or of tokens (B, T) without padding."""
        if isinstance(batch, Tensor):
            if self.bow_features is not None:
                raise TypeError("bow_features needs the texts of a TextBatch, not a tensor of tokens")
            return widen(self.head(self.model.hidden(batch)))
        return self.classify(self.model.hidden(batch.tokens), batch.padding_mask, self.bow_logits(batch))

    # ---- training

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        hidden = self.model.hidden(batch.tokens)  # (B, T, dim)
        logits = self.classify(hidden, batch.padding_mask, self.training_bow_logits(batch))
        losses = [Loss("train_loss", F.cross_entropy(logits, batch.targets[:, 0].long()))]
        if self.lm_weight:
            # The next-token loss of the same hidden states, over tokens only.
            next_tokens = batch.tokens[:, 1:]  # (B, T - 1)
            if batch.padding_mask is not None:
                next_tokens = next_tokens.masked_fill(~batch.padding_mask[:, 1:], IGNORED)
            lm_loss = linear_nll(hidden[:, :-1].flatten(0, 1), self.model.output_weight, next_tokens.flatten())
            losses.append(Loss("train_lm_loss", lm_loss, self.lm_weight))
        return self.step_loss(batch, *losses)

    def loss_counts(self, batch: TextBatch) -> Counts:
        """Rows of a batch and, with lm_weight, tokens after the first of each row."""
        check_text_batch(batch, type(self).__name__)
        counts: list[int | Tensor] = [len(batch.index)]
        if self.lm_weight:
            mask = batch.padding_mask
            counts.append(batch.tokens[:, 1:].numel() if mask is None else mask[:, 1:].sum())
        return counts

    def lr_scale(self, name: str) -> float:
        """layer_decay to the power of the number of layers above the parameter."""
        n_layers = self.model.config.n_layers
        if match := re.match(r"model\.layers\.(\d+)\.", name):
            return self.layer_decay ** (n_layers - 1 - int(match[1]))
        return self.layer_decay**n_layers if name.startswith("model.tok_embeddings") else 1.0

    def count(self, batch: TextBatch) -> int:
        """Samples of a training batch."""
        return len(batch.index)

    def flops_per_item(self, batch: TextBatch) -> float:
        """Floating-point operations of one training sample, forward and backward, by `training_flops`."""
        n_samples, seq_len = batch.tokens.shape
        return training_flops(self.model, self.head.linear, n_samples, seq_len, scores_tokens=bool(self.lm_weight))

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.stores_adapter_only:
            frozen = self._frozen_parameters()
            state = checkpoint["state_dict"]
            checkpoint["state_dict"] = {name: tensor for name, tensor in state.items() if name not in frozen}
            checkpoint["base_digest"] = self.base_digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        # An output matrix that is not tied is trained with lm_weight only, so the optimizer's state depends on that.
        stored = checkpoint.get("hyper_parameters", {})
        is_added = bool(stored.get("lm_weight", self.lm_weight)) != bool(self.lm_weight)
        if is_fitting(self) and is_added and not self.model.config.tie_embeddings:
            check_fixed(stored, self.hparams, ["lm_weight"], "--model.")
        if self.stores_adapter_only and checkpoint.get("base_digest", self.base_digest) != self.base_digest:
            raise UserError(
                f"the weights in {self.hparams['base']} differ from the pretrained weights of this checkpoint: give "
                "the path of the right ones with --model.base"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        frozen = self._frozen_parameters() if self.stores_adapter_only else {}
        return super().load_state_dict({**frozen, **state_dict}, strict=strict, assign=assign)

    def _frozen_parameters(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.named_parameters() if not p.requires_grad}


def _check_method(method: str) -> None:
    if method == "zero_shot":
        raise UserError(
            "method=zero_shot is a model class now: set --model LlamaZeroShot (in a config `class_path: LlamaZeroShot`)"
        )
    check_choice("method", method, METHODS)


def _pretrained_weights(method: str, weights: str | None, base: str | None) -> str:
    """Path of the frozen weights of an adapter."""
    source = weights or base
    if not source:
        raise UserError(f"method={method} needs pretrained weights: give their path with --model.weights")
    if not weights and not os.path.exists(find_weights(source)):
        raise UserError(
            f"the pretrained weights of this checkpoint are not at {source}: give their path with --model.base"
        )
    return source
