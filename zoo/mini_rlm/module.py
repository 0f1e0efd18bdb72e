"""Mini-RLM in Lightning: one number, or a class, for every text."""

from typing import Any, Literal

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError
from zoo.mini_rlm.embeddings import read_embeddings
from zoo.mini_rlm.model import Encoder, Pooling, Reader, ReaderConfig
from zoo.mini_rlm.scales import Scale, ScaleKind
from zoo.training.batches import TextBatch
from zoo.training.regressor import Regressor, known


class MiniRLM(Regressor):
    """RegressLM's small sibling: a character LSTM or transformer, or a perceptron, regresses configurations.

    Logged are the scores of every regressor, or, with classes, `accuracy`.

    Args:
        encoder: what reads: "lstm" or "transformer" the text's tokens, "mlp" the numbers that stand in it.
        pooling: what of the states is kept: their "mean" over the real tokens, the one of a learnt vector before the
            text ("cls"), or that of the "last" real token.
        targets: the scale on which the targets are learnt: "asinh", "standard" or "raw" (zoo.mini_rlm.scales).
        loss: on that scale, "huber" or "mse".
        huber_delta: where Huber's loss turns from square to linear.
        n_objectives: K numbers for each text.
        n_classes: not 0: the target is one of so many classes, 0, 1, ...
        n_features: how many numbers stand in each text, for the mlp.
        embeddings: start from these token embeddings, a matrix (vocab_size, dim) alone in a .pt or .safetensors file.
        freeze_embeddings: leave them as they are.
        optimizer: "adamw" or "adafactor".
        lr: peak learning rate.
        warmup_steps: optimizer steps of linear warm-up.
        min_lr_ratio: the cosine ends at this share of `lr`.
        beta1, beta2: AdamW's decay rates.
        weight_decay: decoupled decay of the matrices.
        **architecture: the other fields of `ReaderConfig`. `vocab_size` follows the data's tokenizer.
    """

    def __init__(
        self,
        encoder: Encoder = "lstm",
        pooling: Pooling = "mean",
        targets: ScaleKind = "asinh",
        loss: Literal["huber", "mse"] = "huber",
        huber_delta: float = 0.1,
        n_objectives: int = 1,
        n_classes: int = 0,
        n_features: int = 0,
        embeddings: str | None = None,
        freeze_embeddings: bool = False,
        optimizer: Literal["adamw", "adafactor"] = "adamw",
        lr: float = 3e-3,
        warmup_steps: int = 50,
        min_lr_ratio: float = 0.0,
        beta1: float = 0.9,
        beta2: float = 0.95,
        weight_decay: float = 0.1,
        **architecture: Any,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if n_classes and n_objectives != 1:
            raise UserError(f"n_classes needs one target column, not {n_objectives}: set n_objectives to 1")
        if loss not in ("huber", "mse") or not huber_delta > 0:
            raise UserError(f"loss is huber, with a positive huber_delta, or mse, not {loss} with {huber_delta}")
        config = ReaderConfig(
            encoder=encoder, pooling=pooling, n_features=n_features, outputs=n_classes or n_objectives, **architecture
        )
        self.model = Reader(config)
        self.target_scale = Scale(n_objectives, "raw" if n_classes else targets)
        self.feature_scale = Scale(n_features)
        if encoder == "mlp" and (embeddings or freeze_embeddings):
            raise UserError("encoder mlp reads no tokens: drop embeddings and freeze_embeddings")
        if embeddings:
            self.model.embedding.weight.data.copy_(read_embeddings(embeddings, (config.vocab_size, config.dim)))
            self.hparams["embeddings"] = None  # a checkpoint of this module must not need the file it started from
        if freeze_embeddings:
            self.model.embedding.requires_grad_(False)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data, h, c = self.data, self.hparams, self.model.config
        places = data.max_input_len + (c.pooling == "cls")
        if c.encoder == "transformer" and places > c.max_positions:
            raise UserError(
                f"data.max_input_len {data.max_input_len} needs {places} positions, but the model has max_positions "
                f"{c.max_positions}: raise the second"
            )
        if c.encoder == "mlp" and data.n_features != h["n_features"]:
            raise UserError(
                f"the data gives {data.n_features} numbers for a text, but the model has n_features {h['n_features']}: "
                "set data.features to true, and n_features to how many there are"
            )
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ()):
            self._check_classes(data.targets(split))
        if stage == "fit":
            self.fit_scales(data.targets("train"), data.features("train") if c.encoder == "mlp" else None)

    def _check_classes(self, targets: np.ndarray) -> None:
        classes = self.hparams["n_classes"]
        strange = targets[~np.isin(targets, range(classes))]
        if classes and len(strange):
            raise UserError(f"a target is {strange[0]:g}, but n_classes {classes} means one of 0 ... {classes - 1}")

    def fit_scales(self, targets: np.ndarray, features: np.ndarray | None = None) -> None:
        """Learn the scales from the training targets (N, K) and, for the mlp, features (N, F)."""
        self.target_scale.fit(targets)
        if features is not None:
            self.feature_scale.fit(features)

    def forward(self, batch: TextBatch) -> Tensor:
        """(B, K) numbers on the targets' scale, or (B, n_classes) logits."""
        features = self.feature_scale(batch.features) if self.hparams["encoder"] == "mlp" else None
        return self.model(batch.tokens, batch.padding_mask, features).float()

    def losses(self, batch: TextBatch) -> Tensor:
        return self._losses(self(batch), batch.targets)

    def estimate(self, batch: TextBatch) -> Tensor:
        return self._estimate(self(batch))

    def evaluate(self, batch: TextBatch) -> dict[str, Tensor]:
        outputs = self(batch)  # once for both
        loss = self._losses(outputs, batch.targets)
        return {"loss": loss, "prediction": self._estimate(outputs), "target": batch.targets}

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.hparams["n_classes"]:
            return F.cross_entropy(outputs, targets[:, 0].long(), reduction="none")
        wanted = self.target_scale(targets)  # (B, K)
        if self.hparams["loss"] == "mse":
            return F.mse_loss(outputs, wanted, reduction="none").mean(1)
        return F.smooth_l1_loss(outputs, wanted, reduction="none", beta=self.hparams["huber_delta"]).mean(1)

    def _estimate(self, outputs: Tensor) -> Tensor:
        if self.hparams["n_classes"]:
            return outputs.argmax(-1, keepdim=True).double()
        return self.target_scale.inverse(outputs)

    def reached(self, columns: dict[str, np.ndarray]) -> dict[str, float]:
        if not self.hparams["n_classes"]:
            return super().reached(columns)
        right = columns["prediction"] == columns["target"]
        return {"loss": float(columns["loss"].mean()), "accuracy": float(right.mean())}

    def predict_step(self, batch: TextBatch, batch_idx: int) -> list[dict[str, Any]]:
        """As every regressor's; with classes, the likeliest one and the probabilities of all."""
        if not self.hparams["n_classes"]:
            return super().predict_step(batch, batch_idx)
        probabilities = self(batch).softmax(-1)  # (B, n_classes)
        rows = zip(batch.index.tolist(), batch.texts, probabilities, batch.targets, strict=True)
        return [
            {"index": i, "input": text, "prediction": int(p.argmax()), "probabilities": p.tolist()} | known(target)
            for i, text, p, target in rows
        ]
