"""MiniRLM in Lightning: regression of texts by a single output vector, or classification."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError, check_choice, check_counts, check_number, check_positive
from zoo.layers.widen import widen
from zoo.mini_rlm.embeddings import read_embeddings
from zoo.mini_rlm.model import Encoder, MiniRLMConfig, MiniRLMNetwork, Pooling
from zoo.mini_rlm.scales import Scale, ScaleKind
from zoo.optim import OptimizerConfig
from zoo.tokenizers import Tokenizer
from zoo.training.batches import TextBatch, check_targets, collate, n_given_rows, targets_and_features, text_rows
from zoo.training.distinct_targets import best_setting, find_merged, warn_of_constant
from zoo.training.fixed_arguments import field_names
from zoo.training.initial_weights import InitialWeights
from zoo.training.language_model import required_vocab_size
from zoo.training.regressor import Regressor, target_fields
from zoo.training.settings import part, refuse_derived


@dataclass
class MiniRLMSettings(OptimizerConfig, MiniRLMConfig):
    """All settings of a MiniRLM and its training."""

    optimizer: Literal["adamw", "adafactor"] = "adamw"
    lr: float = 3e-3
    warmup_steps: int = 50
    min_lr_ratio: float = 0.0


class MiniRLM(Regressor):
    """Small sibling of RegressLM: a character LSTM, a transformer or a multilayer perceptron predicts numbers of texts.

    Logged in addition to `train_loss` and `<split>_loss`: the scores of every regressor, or with classes `accuracy`.

    Args:
        encoder: "lstm" or "transformer" process the text's tokens, "mlp" the numbers in the text.
        pooling: how the states of a text become one vector: the "mean" over its tokens, the state of a trained vector
            in front of the text ("cls"), or the state of the "last" token. Without effect for "mlp".
        target_scale: scale on which targets are learned, fitted to the training targets: "asinh" (linear near the
            median, logarithmic for outliers), "standard" (mean 0, standard deviation 1) or "raw" (unchanged).
        loss: loss on that scale, "huber" or "mse".
        huber_delta: absolute error, on that scale, at which Huber's loss changes from quadratic to linear; positive.
        n_objectives: K, the number of targets of each text; the command line takes it from the data.
        n_classes: 0 for regression; otherwise, from 2 on, the only target is one of the classes 0 ... n_classes - 1.
        n_features: F, how many numbers each text contains, for encoder=mlp; the command line takes it from the data:
            0 unless --data.features is true.
        embeddings: .pt or .safetensors file with the initial token embeddings, a matrix (vocab_size, dim). Default:
            random embeddings.
        freeze_embeddings: keep the token embeddings fixed during training.
        weights: checkpoint of a MiniRLM, also as zoo:NAME, from whose weights training starts. Its encoder, pooling and
            sizes replace the settings given here, except dropout; scales are fitted again. Default: random weights.
        vocab_size: number of token ids; the command line takes it from the data's tokenizer. Unused by encoder=mlp.
        tokenizer: the tokenizer of the data, stored in checkpoints; the command line takes it from the data.
        target_names: names of the K targets, for the metrics of several targets; the command line takes them from the
            data. Default: "objective_1" and so on.
        **settings: the other fields of `MiniRLMConfig`, and those of `OptimizerConfig`.
    """

    data_arguments: ClassVar[tuple[str, ...]] = (*Regressor.data_arguments, "n_features")
    fixed_arguments: ClassVar[tuple[str, ...]] = (
        *Regressor.fixed_arguments,
        *field_names(MiniRLMConfig, "dropout"),
        "target_scale",
        "n_classes",
        "freeze_embeddings",
    )
    network_arguments: ClassVar[tuple[str, ...]] = ("n_heads", "rope_theta", "pooling", "target_scale")
    renamed_arguments: ClassVar[dict[str, str]] = {
        "targets": "target_scale",
        "max_positions": "max_seq_len",
        "head_dim": "readout_dim",
    }

    def __init__(
        self,
        encoder: Encoder = "lstm",
        pooling: Pooling = "mean",
        target_scale: ScaleKind = "asinh",
        loss: Literal["huber", "mse"] = "huber",
        huber_delta: float = 0.1,
        n_objectives: int = 1,
        n_classes: int = 0,
        n_features: int = 0,
        embeddings: str | None = None,
        freeze_embeddings: bool = False,
        weights: str | None = None,
        vocab_size: int | None = None,
        tokenizer: Tokenizer | None = None,
        target_names: list[str] | None = None,
        **settings: Any,
    ) -> None:
        refuse_derived(settings, outputs="n_classes or n_objectives")
        check_counts(n_objectives=n_objectives)
        check_counts(0, n_features=n_features)
        check_number("n_classes", n_classes, "0 or at least 2", lambda n: n == 0 or n >= 2, whole=True)
        check_choice("loss", loss, ("huber", "mse"))
        check_positive("huber_delta", huber_delta)
        if n_classes and n_objectives != 1:
            raise UserError(f"n_classes needs one target column, not {n_objectives}: set n_objectives to 1")
        kinds = ("encoder", "pooling", "target_scale")
        sizes = field_names(MiniRLMConfig, "encoder", "pooling", "vocab_size", "n_features", "outputs", "dropout")
        start = InitialWeights(weights, "MiniRLM", (*kinds, *sizes))
        encoder, pooling, target_scale = (
            start.settings.get(name, value) for name, value in zip(kinds, (encoder, pooling, target_scale), strict=True)
        )
        settings |= {name: value for name, value in start.settings.items() if name in sizes}
        if encoder == "mlp" and (embeddings or freeze_embeddings):
            raise UserError("encoder mlp reads no tokens: drop embeddings and freeze_embeddings")
        if encoder != "mlp":
            vocab_size = required_vocab_size(vocab_size, tokenizer, "MiniRLM")
            start.check_data(tokenizer, vocab_size=(vocab_size, f"set --data.tokenizer {weights}"))
        columns = f"give data with the columns of the weights in {weights}"
        start.check_data(n_objectives=(n_objectives, columns), n_features=(n_features, columns))
        config = MiniRLMSettings(
            encoder=encoder,
            pooling=pooling,
            vocab_size=MiniRLMConfig.vocab_size if vocab_size is None else vocab_size,
            n_features=n_features,
            outputs=n_classes or n_objectives,
            **settings,
        )
        network = start.build(lambda: MiniRLMNetwork(part(config, MiniRLMConfig)))
        super().__init__(network, config, n_objectives, tokenizer, target_names)
        self.save_hyperparameters(ignore=["tokenizer"])
        self.hparams.update(start.settings | {"weights": None})  # a checkpoint must not need the file it started from
        self.target_scale = Scale(n_objectives, "raw" if n_classes else target_scale)
        self.feature_scale = Scale(n_features)
        start.restore(self.target_scale, "target_scale")
        start.restore(self.feature_scale, "feature_scale")
        self.has_scales = self.target_scale.kind == "raw" and encoder != "mlp"  # then there is nothing to fit
        if embeddings:
            self.model.embedding.weight.data.copy_(read_embeddings(embeddings, (config.vocab_size, config.dim)))
            self.hparams["embeddings"] = None  # a checkpoint of this module must not need the file it started from
        if freeze_embeddings:
            self.model.embedding.requires_grad_(False)

    # ---- scales

    def on_train_start(self) -> None:
        """Check the training rows, and fit the scales to them unless a checkpoint brought its own."""
        try:
            targets, features = targets_and_features(self.trainer.train_dataloader)
        except TypeError as error:
            if self.has_scales:  # the rows of other datasets are checked batch by batch
                return
            raise TypeError(f"{error}; with other data call fit_scales(targets) before training") from error
        self.check_objectives(targets.shape[1])
        self.check_features(0 if features is None else features.shape[1])
        self.check_targets(torch.from_numpy(targets), range(len(targets)))
        if self.hparams["encoder"] == "mlp" and features is not None and not np.isfinite(features).all():
            row = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
            raise UserError(f"row {row}: a number in the text is NaN or infinite, which encoder=mlp cannot read")
        given = targets[: n_given_rows(self.trainer.train_dataloader)]
        if self.trainer.is_global_zero:
            warn_of_constant(given)
        if not self.has_scales:
            self.fit_scales(targets, features)
        is_fp64 = next(self.model.parameters()).dtype == torch.float64
        if not self.hparams["n_classes"] and not is_fp64 and self.trainer.is_global_zero:
            self._warn_of_merged(given)

    def _warn_of_merged(self, targets: np.ndarray) -> None:
        """Warn of training targets (N, K) that become equal on the model's scale, which is in fp32."""
        for merged in find_merged(targets, self.target_scale.scaled(targets)):
            kind, column = self.target_scale.kind, targets[:, [merged.objective]]
            others = [(other, Scale.fitted(column, other).scaled) for other in get_args(ScaleKind) if other != kind]
            better = best_setting(merged.quantiles, others)
            remedy = f"set --model.target_scale {better}" if better else "subtract a constant from them, or scale them"
            warnings.warn(
                f"{merged.describe(self.n_objectives)} with target_scale {kind} in fp32, so that the model cannot tell "
                f"them apart: {remedy}",
                stacklevel=3,
            )

    def fit_scales(self, targets: np.ndarray, features: np.ndarray | None = None) -> None:
        """Fit the scales to the training targets (N, K) and, for encoder=mlp, to the features (N, F).

        Training calls this when it starts, unless it has been called before or the scales come from a checkpoint.
        """
        self.target_scale.fit(targets)
        if self.hparams["encoder"] == "mlp" and features is not None:
            self.feature_scale.fit(features)
        self.has_scales = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.has_scales = True

    # ---- checks

    def check_data(self, data: Any) -> None:
        """The longest text must fit into the transformer, and encoder=mlp needs features."""
        super().check_data(data)
        c = self.model.config
        positions = data.max_input_len + (c.pooling == "cls")
        if c.encoder == "transformer" and positions > c.max_seq_len:
            raise UserError(
                f"data.max_input_len {data.max_input_len} needs {positions} positions, but the model has max_seq_len "
                f"{c.max_seq_len}: set --model.max_seq_len to at least {positions}"
            )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        is_packed = isinstance(batch, TextBatch) and self.hparams["encoder"] == "lstm"
        if is_packed and batch.padding_mask is not None:
            batch = batch._replace(lengths=batch.padding_mask.sum(1).tolist())
        return batch

    def check_inputs(self, batch: Any) -> None:
        super().check_inputs(batch)
        self.check_features(0 if batch.features is None else batch.features.shape[1])
        features = batch.features
        if self.hparams["encoder"] == "mlp" and features.device.type == "cpu" and not features.isfinite().all():
            row = int((~features.isfinite()).any(1).nonzero()[0])
            raise UserError(
                f"row {int(batch.index[row])}: a number in the text is NaN, infinite or beyond the range of fp32, "
                "which encoder=mlp cannot read"
            )

    def check_features(self, columns: int) -> None:
        """Raises UserError if encoder=mlp gets another number of features than it has inputs."""
        expected = self.hparams["n_features"]
        if self.hparams["encoder"] == "mlp" and columns != expected:
            raise UserError(
                f"the data gives {columns} numbers for a text, but the model has n_features {expected}: set "
                "data.features to true, and n_features to how many numbers each text contains"
            )

    def check_targets(self, targets: Tensor, index: Sequence[int] | Tensor) -> None:
        check_targets(targets, index, self.hparams["n_classes"])

    # ---- loss and predictions

    def outputs(self, batch: TextBatch) -> Tensor:
        """(B, K) predictions on the targets' scale, or (B, n_classes) logits."""
        dtype = next(self.model.parameters()).dtype
        features = self.feature_scale(batch.features, dtype) if self.hparams["encoder"] == "mlp" else None
        return widen(self.model(batch.tokens, batch.padding_mask, features, batch.lengths))

    def losses(self, batch: TextBatch) -> Tensor:
        return self._losses(self.outputs(batch), batch.targets)

    def estimate(self, batch: TextBatch) -> Tensor:
        """(B, K) predictions in the targets' unit; with classes (B, 1) the most likely class."""
        if not isinstance(batch, TextBatch):
            raise TypeError(f"estimate takes a TextBatch, not a {type(batch).__name__}: call predict(texts) for texts")
        return self._estimate(self.outputs(batch))

    @torch.inference_mode()
    def predict(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Predictions for texts: (N, K) in the targets' unit, or with classes (N, 1) the most likely class.

        Dropout is off, also in training mode.

        Args:
            texts: N texts, written as in training; those of a table have the form of its `row_format`.
            batch_size: texts that are processed together, at least 1.

        Raises:
            UserError: the model has no tokenizer or reads features (encoder=mlp), a text is not a str or is empty or
                too long, or `texts` is a single one.
        """
        check_counts(batch_size=batch_size)
        c = self.model.config
        if c.encoder == "mlp":
            raise UserError("encoder mlp reads the numbers of a table, not texts: use `zoo predict`, or call the model")
        if self.tokenizer is None:
            raise UserError("MiniRLM cannot read texts without a tokenizer: pass it as tokenizer=")
        rows = text_rows(texts, None, self.tokenizer)
        for row in rows:
            if c.encoder == "transformer" and (needed := len(row.tokens) + (c.pooling == "cls")) > c.max_seq_len:
                raise UserError(
                    f"text {row.index} needs {needed} positions, but the model has max_seq_len {c.max_seq_len}"
                )
        modes = [(part, part.training) for part in self.modules()]
        self.eval()
        try:
            batches = [collate(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
            predictions = [self.estimate(self.transfer_batch_to_device(b, self.device, 0)) for b in batches]
        finally:
            for part, mode in modes:
                part.training = mode
        columns = 1 if self.hparams["n_classes"] else self.n_objectives
        return torch.cat([torch.zeros(0, columns, dtype=torch.float64, device=self.device), *predictions])

    def evaluate(self, batch: TextBatch) -> dict[str, Tensor]:
        outputs = self.outputs(batch)  # once for loss and prediction
        loss = self._losses(outputs, batch.targets)
        return {"loss": loss, "prediction": self._estimate(outputs), "target": batch.targets}

    def _losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.hparams["n_classes"]:
            return F.cross_entropy(outputs, targets[:, 0].long(), reduction="none")
        scaled = self.target_scale(targets, outputs.dtype)  # (B, K)
        if self.hparams["loss"] == "mse":
            return F.mse_loss(outputs, scaled, reduction="none").mean(1)
        return F.smooth_l1_loss(outputs, scaled, reduction="none", beta=self.hparams["huber_delta"]).mean(1)

    def _estimate(self, outputs: Tensor) -> Tensor:
        if self.hparams["n_classes"]:
            return outputs.argmax(-1, keepdim=True).double()
        return self.target_scale.inverse(outputs)

    def compute_metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        if not self.hparams["n_classes"]:
            return super().compute_metrics(outputs)
        is_correct = outputs["prediction"] == outputs["target"]
        return {"loss": float(outputs["loss"].mean()), "accuracy": float(is_correct.mean())}

    def predict_step(self, batch: TextBatch, batch_idx: int) -> list[dict[str, Any]]:
        """The fields of every regressor; with classes "prediction" is the most likely class, and there are
        "probabilities" of all classes."""
        if not self.hparams["n_classes"]:
            return super().predict_step(batch, batch_idx)
        self.check_inputs(batch)
        probabilities = self.outputs(batch).softmax(-1).cpu()  # (B, n_classes)
        rows = zip(batch.index.tolist(), batch.texts, probabilities, batch.targets.cpu(), strict=True)
        return [
            {"index": i, "input": text, "prediction": int(p.argmax()), "probabilities": p.tolist()}
            | target_fields(target)
            for i, text, p, target in rows
        ]
