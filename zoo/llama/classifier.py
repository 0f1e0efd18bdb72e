"""Llama in Lightning as a classifier of texts: `LlamaClassifier`."""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score

from zoo.errors import UserError
from zoo.layers.linear_nll import linear_nll
from zoo.layers.lora import add_lora, merge_lora
from zoo.llama.checkpoints import digest, new_or_loaded
from zoo.llama.class_scores import Head, Pooling, continuations, course_scores, word_scores
from zoo.llama.figures import confusion
from zoo.llama.model import LlamaConfig
from zoo.training.batches import TextBatch
from zoo.training.checkpoint_file import read_checkpoint
from zoo.training.module import ZooModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from zoo.baselines.bow_features import BagOfWords

Method = Literal["full", "head", "lora", "zero_shot"]


class LlamaClassifier(ZooModule):
    """Llama as a classifier of texts: zero-shot by a prompt, fine-tuned, or adapted by LoRA; for `Reviews`.

    Logged: `train_loss`, and for val and test `<split>_loss`, `<split>_accuracy` and `<split>_macro_f1`; the confusion
    matrix is drawn. With "head" and "lora" a checkpoint holds what was trained and names the file that it was trained
    beside (`base`), which must be there when it is loaded; `export` makes one that needs no other.

    Args:
        label_names: the names of the classes, which follow the data's.
        method: what is trained: "full", all weights; "head", a linear map on the hidden states; "lora", that and
            low-rank updates; or nothing, "zero_shot": a class is chosen by its name after `data.prompt`.
        weights: start from these: a llama2.c `.bin` or `.pt`, a Hugging Face folder or a checkpoint of ours. The
            architecture is then the file's, but for dropout and gradient checkpointing.
        base: of a checkpoint by "head" or "lora", where the weights that it was trained beside lie now.
        pooling: "last" (the last token's hidden state), "mean", or "attention".
        head_dropout: of the pooled state.
        lora_rank: of the updates.
        lora_alpha: their scale is lora_alpha / lora_rank.
        lora_targets: the adapted matrices, with commas between, of wqkv, wo, w13, w2 (and output, where it is untied).
        lm_weight: add so much of the next-token loss on the same texts: pretraining goes on while the classes are
            learnt.
        bag: add the logits of a bag of words and pairs of words, times a learnt number: of logistic regression on
            "tfidf", or of "naive_bayes". It is fitted when training starts (see zoo.baselines.bow_features).
        bag_c: the inverse penalty of that regression.
        normalize: zero-shot: the mean over the tokens of a name, not the sum.
        calibrate: zero-shot: subtract what the names score after the prompt without a text.
        compat: zero-shot as CMU's minllama course scores it, padding and all; its prompt ends with a space.
        lr: peak learning rate, of the head and the last layer.
        layer_decay: each layer's learning rate is this share of the next one's.
        warmup_steps: optimizer steps of linear warm-up.
        min_lr_ratio: the cosine ends at this share of `lr`.
        beta1, beta2: AdamW's decay rates.
        weight_decay: decoupled decay of the matrices.
        **architecture: the fields of `LlamaConfig`. `vocab_size` follows the data's tokenizer.
    """

    item = "samples"  # what Throughput counts
    losses: Any
    scores: Any
    confusions: Any

    def __init__(
        self,
        label_names: list[str],
        method: Method = "full",
        weights: str | None = None,
        base: str | None = None,
        pooling: Pooling = "last",
        head_dropout: float = 0.3,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_targets: str = "wqkv,wo,w13,w2",
        lm_weight: float = 0.0,
        bag: Literal["tfidf", "naive_bayes"] | None = None,
        bag_c: float = 3.0,
        normalize: bool = False,
        calibrate: bool = False,
        compat: bool = False,
        lr: float = 1e-3,
        layer_decay: float = 1.0,
        warmup_steps: int = 100,
        min_lr_ratio: float = 0.1,
        beta1: float = 0.9,
        beta2: float = 0.95,
        weight_decay: float = 0.1,
        **architecture: Any,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not label_names:
            raise UserError("these data name no classes: give the classifier data such as Reviews, with label_names")
        self.label_names, classes = label_names, len(label_names)
        if compat and (normalize or calibrate):
            raise UserError("compat scores as the course does, which knows no normalize and no calibrate: drop those")
        if method == "zero_shot" and bag is not None:
            raise UserError("method zero_shot learns nothing, so it has no bag of words: drop bag")
        if not 0 < layer_decay <= 1:
            raise UserError(f"layer_decay must be a share above 0, not {layer_decay}")
        self.beside = method in ("head", "lora")
        source = weights or (base if self.beside else None)
        if self.beside and not source:
            raise UserError(f"method {method} trains beside weights that stay: give some with --model.weights")
        if self.beside and not weights and not os.path.exists(source or ""):
            raise FileNotFoundError(
                f"the weights that this model was trained beside are not at {source}: say where with --model.base"
            )
        self.model = new_or_loaded(LlamaConfig(**architecture), source, architecture.get("vocab_size"))
        if source:
            kept = {"base": os.path.abspath(source)} if self.beside else {}
            self.hparams.update(asdict(self.model.config) | {"weights": None} | kept)
        if self.beside:
            self.digest = digest(self.model)
            self.model.requires_grad_(False)
        if method == "lora":
            add_lora(self.model, lora_rank, lora_alpha, [name.strip() for name in lora_targets.split(",")])
        if not self.model.config.tie_embeddings and not lm_weight:
            self.model.output.requires_grad_(False)  # takes no part, and would keep several processes waiting
        self.bag = None if bag is None else _bag(classes, bag, bag_c)
        if self.bag is not None:
            self.trust = nn.Parameter(torch.ones(()))
        self.held_out: Tensor | None = None  # (N, C) the bag's logits of training texts, by fits without them
        if method != "zero_shot":
            self.head = Head(self.model.config.dim, classes, pooling, head_dropout)
        self._prior: Tensor | None = None  # (1, C)
        self.confused: np.ndarray | None = None  # (C, C) of the last evaluation
        splits = ("val", "test")
        self.losses = nn.ModuleDict({split: MeanMetric(nan_strategy=float("nan")) for split in splits})
        self.confusions = nn.ModuleDict({split: MulticlassConfusionMatrix(classes) for split in splits})
        scores = {
            "accuracy": MulticlassAccuracy(classes, average="micro"),
            "macro_f1": MulticlassF1Score(classes, average="macro"),
        }
        self.scores = nn.ModuleDict({s: MetricCollection({**scores}, prefix=f"{s}_").clone() for s in splits})

    @property
    def data(self) -> Any:
        """The DataModule of the running trainer."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        data, h = self.data, self.hparams
        if data.label_names != self.label_names:
            raise UserError(f"the data's classes are {data.label_names}, but the model's {self.label_names}")
        longest, needed = self.model.config.max_seq_len, data.max_input_len
        if h["method"] == "zero_shot":
            if stage == "fit":
                raise UserError("method zero_shot trains nothing: use zoo validate, test or predict")
            needed += max(map(len, self._words)) - 1
        if needed > longest:
            raise UserError(
                f"data.max_input_len {data.max_input_len} needs {needed} positions, but the model has max_seq_len "
                f"{longest}: lower the first"
            )
        self._prior = None
        if stage == "fit" and self.bag is not None:
            self.held_out = self.bag.fit(data.texts("train"), data.targets("train")[:, 0].astype(int))

    # ---- the classes of a batch

    def forward(self, batch: TextBatch) -> Tensor:
        """(B, C) logits."""
        return self._zero_shot(batch) if self.hparams["method"] == "zero_shot" else self._trained(batch)[0]

    def _trained(self, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and hidden states (B, T, dim)."""
        hidden = self.model.hidden(batch.tokens)
        logits = self.head(hidden, batch.padding_mask).float()
        if self.bag is not None:
            held_out = self.held_out if self.training else None
            words = self.bag(batch.texts) if held_out is None else held_out[batch.index.cpu()].to(logits)
            logits = logits + self.trust * words
        return logits, hidden

    @property
    def _words(self) -> list[list[int]]:
        """The tokens of the names of the classes."""
        tokenizer = self.data.tokenizer
        if self.data.hparams["prompt"] is None:
            raise UserError("method zero_shot asks for the class: give data.prompt, such as '{text} This movie is'")
        if self.hparams["compat"]:
            if not self.data.prompts[1].endswith(" "):
                raise UserError("compat scores as the course does, whose prompt ends with a space: end data.prompt so")
            return [tokenizer.encode(name, bos=False) for name in self.label_names]
        return continuations(tokenizer, self.data.prompts[1], self.label_names)

    def _zero_shot(self, batch: TextBatch) -> Tensor:
        h, words = self.hparams, self._words
        if h["compat"]:
            return course_scores(self.model, batch.tokens, words)
        scores = word_scores(self.model, batch.tokens, batch.padding_mask, words, h["normalize"])
        if h["calibrate"]:
            if self._prior is None:
                ids = self.data.tokenizer.encode("".join(self.data.prompts).strip())
                prompt = torch.tensor([ids], device=self.device)
                self._prior = word_scores(self.model, prompt, None, words, h["normalize"])
            scores = scores - self._prior
        return scores

    # ---- training

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        logits, hidden = self._trained(batch)
        loss = F.cross_entropy(logits, batch.targets[:, 0].long())
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch.index))
        if weight := self.hparams["lm_weight"]:
            following = batch.tokens[:, 1:]  # (B, T - 1)
            if batch.padding_mask is not None:
                following = following.masked_fill(~batch.padding_mask[:, 1:], -100)
            nll = linear_nll(hidden[:, :-1].flatten(0, 1), self.model.output_weight, following.flatten())
            self.log("train_lm_loss", nll, batch_size=len(batch.index))
            loss = loss + weight * nll
        return loss

    def lr_scale(self, name: str) -> float:
        layers = self.model.config.n_layers
        if found := re.match(r"model\.layers\.(\d+)\.", name):
            return self.hparams["layer_decay"] ** (layers - 1 - int(found[1]))
        return self.hparams["layer_decay"] ** layers if name.startswith("model.tok_embeddings") else 1.0

    def count(self, batch: TextBatch) -> int:
        """Samples of a training batch."""
        return len(batch.index)

    def flops_per_item(self, batch: TextBatch) -> float:
        """Floating-point operations of one training sample, forward and backward."""
        length = batch.tokens.shape[1]
        return length * self.model.flops_per_token(length)

    # ---- evaluation

    def _update(self, split: str, batch: TextBatch) -> None:
        logits, target = self(batch), batch.targets[:, 0].long()
        self.losses[split].update(F.cross_entropy(logits, target), weight=len(target))
        self.scores[split].update(logits, target)
        self.confusions[split].update(logits, target)

    def _log(self, split: str) -> None:
        reached = {f"{split}_loss": self.losses[split].compute()} | self.scores[split].compute()
        self.log_dict(reached, prog_bar=True, sync_dist=True)  # equal on all ranks: the metrics have synced
        self.confused = self.confusions[split].compute().cpu().numpy()
        for metric in (self.losses[split], self.scores[split], self.confusions[split]):
            metric.reset()

    def validation_step(self, batch: TextBatch, batch_idx: int) -> None:
        self._update("val", batch)

    def on_validation_epoch_end(self) -> None:
        self._log("val")

    def test_step(self, batch: TextBatch, batch_idx: int) -> None:
        self._update("test", batch)

    def on_test_epoch_end(self) -> None:
        self._log("test")

    def figures(self) -> "dict[str, Figure]":
        """The confusion matrix of the last evaluation, for the callback that draws."""
        if self.confused is None:
            return {}
        right = np.trace(self.confused) / max(self.confused.sum(), 1)
        return {"confusion": confusion(self.confused, self.label_names, f"accuracy {right:.3f}")}

    def predict_step(self, batch: TextBatch, batch_idx: int) -> list[dict[str, Any]]:
        """One row for every text: the label as the files spell it, the probabilities of all, and what is known."""
        probabilities = self(batch).softmax(-1)  # (B, C)
        spelt = self.data.labels.spellings
        rows = []
        for index, text, p, target in zip(
            batch.index.tolist(), batch.texts, probabilities, batch.targets[:, 0], strict=True
        ):
            best = int(p.argmax())
            row = {"index": index, "input": text, "label": spelt[best], "name": self.label_names[best]}
            row["probabilities"] = dict(zip(self.label_names, p.tolist(), strict=True))
            rows.append(row if target.isnan() else row | {"gold": spelt[int(target)]})
        return rows

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.beside:
            trained = checkpoint["state_dict"].keys() - self._frozen().keys()
            checkpoint["state_dict"] = {n: t for n, t in checkpoint["state_dict"].items() if n in trained}
            checkpoint["base_digest"] = self.digest

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        learnt = checkpoint["hyper_parameters"]["label_names"]
        if learnt != self.label_names:
            raise UserError(
                f"this checkpoint learnt the classes {learnt}, in this order, not {self.label_names}: drop "
                "data.label_names, or name each label by one of those"
            )
        if self.beside and checkpoint.get("base_digest", self.digest) != self.digest:
            raise UserError(
                f"the weights in {self.hparams['base']} are not those that this checkpoint was trained beside: "
                "say where they are with --model.base"
            )

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        frozen = self._frozen() if self.beside else {}
        return super().load_state_dict({**frozen, **state_dict}, strict=strict, assign=assign)

    def _frozen(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.named_parameters() if not p.requires_grad}


def _bag(n_classes: int, weigh: Literal["tfidf", "naive_bayes"], inverse_penalty: float) -> "BagOfWords":
    from zoo.baselines.bow_features import BagOfWords  # and with it scikit-learn, only for those who ask for it

    return BagOfWords(n_classes, weigh, inverse_penalty)


def export(path: str | Path, target: str | Path, base: str | Path | None = None) -> None:
    """Write the checkpoint at `path`, its low-rank updates merged into the weights, as one that needs no other file.

    `base` says where the weights that it was trained beside lie now, if they have moved.
    """
    moved: Any = {} if base is None else {"base": str(base)}
    module = LlamaClassifier.load_from_checkpoint(path, map_location="cpu", weights_only=True, **moved)
    merge_lora(module.model)
    module.hparams.update({"method": "full", "base": None} if module.beside else {})
    checkpoint = read_checkpoint(str(path))
    left_out = ("optimizer_states", "lr_schedulers", "base_digest", "loops", "callbacks")
    torch.save(
        {name: value for name, value in checkpoint.items() if name not in left_out}
        | {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)},
        target,
    )
