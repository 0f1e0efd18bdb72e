"""RegressLM in Lightning: loss, evaluation and predictions. The class with the Python API is in api.py."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError, check_choice, check_counts, check_number, check_weight
from zoo.layers.lora import add_lora
from zoo.optim import OptimizerConfig
from zoo.regress_lm import decoding, estimates
from zoo.regress_lm.defaults import choose_settings
from zoo.regress_lm.model import EncoderDecoder, RegressLMConfig
from zoo.regress_lm.number_formats import NumberFormat, finer_format, number_tokenizer
from zoo.regress_lm.upstream_weights import load_upstream
from zoo.regress_lm.vocabulary import NumberVocabulary
from zoo.tokenizers import Tokenizer
from zoo.training.batches import TextBatch, targets_and_features
from zoo.training.checkpoint_file import read_checkpoint
from zoo.training.choices import Choice
from zoo.training.distinct_targets import find_merged
from zoo.training.fixed_arguments import field_names
from zoo.training.language_model import required_vocab_size
from zoo.training.random_streams import derive, global_seed
from zoo.training.regressor import Regressor, target_fields, to_json
from zoo.training.settings import part, refuse_derived


@dataclass
class RegressLMSettings(OptimizerConfig, RegressLMConfig):
    """All settings of a RegressLM and its training."""

    weight_decay: float = 0.01


class RegressLMModule(Regressor):
    """Text in, distribution over numbers out: an encoder reads any text, a decoder generates the number's tokens.

    Logged in addition to the scores of every regressor: `nll`, nats per row under the constrained distribution that is
    sampled from; `crps`; `coverage_50` and `coverage_90`, the shares of targets inside the central 50% and 90%
    intervals.

    Args:
        number_format: tokens of a number: "ieee" (sign, exponent, mantissa), "p10" (sign, mantissa, a token for the
            power of ten) or "normalized" (digits of a target in [0, 1]).
        number_digits: significant digits of a number. Default: 4, and 3 for "normalized".
        number_exponent: for "ieee" the number of exponent digits (default 1), for "p10" the largest power of ten
            (default 10).
        special_values: targets may be NaN, infinite or "invalid" in the Python API; data modules refuse such rows.
        n_objectives: K, the number of targets of each text; on the command line that of the data.
        z_loss: weight of log(Z)^2 in the loss, at least 0, which keeps the softmax's normaliser Z near 1; 0 turns it
            off.
        point: the point estimate that scores and predictions use, "median", "mean" or "mode" of the samples.
        num_samples: samples of each number in validate, test and predict, at least 1.
        val_samples: samples of each number in the validations of a fit, at least 0; 0 computes the loss only.
        keep_samples: whether predictions list the samples.
        temperature: divides the logits when sampling, at least 0; 1 is the model's own distribution, 0 its most likely
            tokens.
        lora_rank: train low-rank updates of this rank only; 0 trains all weights.
        lora_alpha: the update is multiplied by lora_alpha / lora_rank.
        weights: checkpoint with initial weights, of the zoo or of upstream. Default: random weights.
        round_digits: significant digits to which the numbers in texts are rounded before the tokenizer, None for no
            rounding; on the command line that of the data. Texts given to the Python API are rounded in the same way.
        power_tokens: whether rounded numbers in texts are a mantissa and a power of ten; on the command line that of
            the data.
        vocab_size: number of token ids; on the command line that of the data's tokenizer.
        tokenizer: the tokenizer of the data, stored in checkpoints; on the command line the data's.
        **settings: the other fields of `RegressLMConfig`, and those of `OptimizerConfig`.
    """

    data_arguments: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "tokenizer",
        "n_objectives",
        "round_digits",
        "power_tokens",
    )
    fixed_arguments: ClassVar[tuple[str, ...]] = (
        *Regressor.fixed_arguments,
        *field_names(RegressLMConfig, "dropout", "residual_dropout"),
        "number_format",
        "number_digits",
        "number_exponent",
        "special_values",
        "lora_rank",
        "lora_alpha",
    )
    renamed_arguments: ClassVar[dict[str, str]] = {
        "numbers": "number_format",
        "digits": "number_digits",
        "exponent": "number_exponent",
        "hidden_mult": "hidden_dim",
    }
    output_fields = ("loss", "prediction", "target", "nll", "crps", "pit")

    def __init__(
        self,
        number_format: NumberFormat = "ieee",
        number_digits: int | None = None,
        number_exponent: int | None = None,
        special_values: bool = False,
        n_objectives: int = 1,
        z_loss: float = 0.0,
        point: Literal["median", "mean", "mode"] = "median",
        num_samples: int = 128,
        val_samples: int = 16,
        keep_samples: bool = False,
        temperature: float = 1.0,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        weights: str | None = None,
        round_digits: int | None = None,
        power_tokens: bool = False,
        vocab_size: int | None = None,
        tokenizer: Tokenizer | None = None,
        **settings: Any,
    ) -> None:
        sources = "number_format, number_digits, number_exponent, special_values and n_objectives"
        refuse_derived(settings, number_vocab_size=sources, number_len=sources)
        check_choice("point", point, ("median", "mean", "mode"))
        check_counts(n_objectives=n_objectives, num_samples=num_samples)
        check_counts(0, val_samples=val_samples, lora_rank=lora_rank)
        check_weight("temperature", temperature)
        check_weight("z_loss", z_loss)
        check_number("lora_alpha", lora_alpha, "finite", math.isfinite)
        formatter = number_tokenizer(number_format, number_digits, number_exponent, special_values)
        vocabulary = NumberVocabulary(formatter, n_objectives)
        vocab_size = required_vocab_size(vocab_size, tokenizer, "RegressLM")  # stored in checkpoints
        config = RegressLMSettings(
            vocab_size=vocab_size,
            number_vocab_size=vocabulary.size,
            number_len=vocabulary.length,
            **settings,
        )
        super().__init__(EncoderDecoder(part(config, RegressLMConfig)), config, n_objectives, tokenizer)
        self.save_hyperparameters(ignore=["tokenizer"])
        self.vocabulary = vocabulary
        self.val_samples = val_samples
        self.dropout_seed: int | None = None
        """Seed of dropout in `fine_tune`; None for the seed of the run."""
        if weights:
            self.load_state_dict(_read_weights(weights))
            self.hparams["weights"] = None  # a checkpoint of this module must not need the file it started from
        if lora_rank:
            add_lora(self.model, lora_rank, lora_alpha)

    @classmethod
    def choose_settings(cls, data: Any, given: Mapping[str, Any]) -> list[Choice]:
        """Settings that follow from the data, by the rules in `zoo.regress_lm.defaults`.

        Args:
            data: a data module with `statistics()`.
            given: the settings that are already decided, by option.

        Raises:
            UserError: the data has no texts with numbers.
        """
        if not hasattr(data, "statistics"):
            raise UserError(
                f"{type(data).__name__} has no texts with numbers for {cls.__name__}: give --data=TextRegression"
            )
        return choose_settings(data.statistics(), given)

    def check_data(self, data: Any) -> None:
        """The data must hold texts with numbers, none longer than the model's max_input_len."""
        super().check_data(data)
        limit = self.model.config.max_input_len
        if data.max_input_len > limit:
            raise UserError(
                f"data.max_input_len {data.max_input_len} is beyond the model's max_input_len {limit}: set "
                f"--data.max_input_len to at most {limit}, or raise --model.max_input_len"
            )

    # ---- training

    def on_train_start(self) -> None:
        """Warn once of training targets that the number tokenizer clamps to its range or cannot distinguish."""
        try:
            targets, _ = targets_and_features(self.trainer.train_dataloader)
        except TypeError:  # batches from another kind of dataset train as well
            return
        self.check_objectives(targets.shape[1])
        self.check_targets(torch.from_numpy(targets), range(len(targets)))
        tokens = self.vocabulary.encode(targets)
        if self.trainer.is_global_zero:
            for merged in find_merged(targets, self.vocabulary.decode(tokens)):
                h: Any = self.hparams
                better = finer_format(merged.quantiles, h["number_format"], h["number_digits"], h["number_exponent"])
                warnings.warn(
                    f"{merged.describe(self.n_objectives)} as number tokens, so that the model cannot tell them "
                    f"apart: {f'set {better}' if better else 'subtract a constant from them, or scale them'}",
                    stacklevel=2,
                )

    def on_train_batch_start(self, batch: TextBatch, batch_idx: int) -> None:
        if self.dropout_seed is None:
            super().on_train_batch_start(batch, batch_idx)
        else:
            torch.manual_seed(derive(self.dropout_seed, "step", self.global_step))

    def check_targets(self, targets: Tensor, index: Sequence[int] | Tensor) -> None:
        if not self.hparams["special_values"]:
            super().check_targets(targets, index)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        return self.with_number_tokens(batch) if isinstance(batch, TextBatch) else batch

    def with_number_tokens(self, batch: TextBatch) -> TextBatch:
        """The batch, on the CPU, with its targets' number tokens; rows to predict may have no targets."""
        if batch.targets.isnan().any() and not self.hparams["special_values"]:
            return batch
        return batch._replace(numbers=self._encode_targets(batch))

    def _encode_targets(self, batch: TextBatch) -> Tensor:
        """Number tokens (B, L) of the batch's targets."""
        if batch.numbers is not None:
            return batch.numbers
        if batch.targets.isnan().any() and not self.hparams["special_values"]:
            raise UserError("these rows have no targets whose loss or probability could be computed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `on_train_start` has warned of clamped targets
            return self.vocabulary.encode(batch.targets.cpu().numpy()).to(batch.targets.device)

    def log_probs(self, batch: TextBatch) -> Tensor:
        """(B,) log-probability of each row's targets in nats, under the constrained distribution."""
        numbers = self._encode_targets(batch)
        return decoding.log_prob(self.model, self.vocabulary, batch.tokens, batch.padding_mask, numbers)

    def losses(self, batch: TextBatch) -> Tensor:
        """(B,) mean cross-entropy of a row's number tokens in nats, separators excluded, and the z-loss."""
        numbers = self._encode_targets(batch)
        logits = self.model(batch.tokens, numbers, batch.padding_mask).float()  # (B, L, V)
        losses = F.cross_entropy(logits.mT, numbers, ignore_index=0, reduction="none")  # (B, L)
        is_scored = numbers != 0
        if z_loss := self.hparams["z_loss"]:
            losses = losses + z_loss * logits.logsumexp(-1).square() * is_scored
        return losses.sum(1) / is_scored.sum(1)

    # ---- evaluation

    def draw(self, batch: TextBatch, num_samples: int, seed: int) -> tuple[Tensor, Tensor]:
        """Samples (B, S, K) in float64 and their log-probabilities (B, S); a row's draws depend on index and seed."""
        h: Any = self.hparams
        ids, log_prob = decoding.sample(
            self.model, self.vocabulary, batch.tokens, batch.padding_mask, num_samples,
            temperature=h.temperature, seed=seed, rows=batch.index,
        )  # fmt: skip
        return torch.from_numpy(self.vocabulary.decode(ids.cpu())).to(ids.device), log_prob

    def estimate(self, batch: TextBatch) -> Tensor:
        """(B, K) the chosen point estimate from `num_samples` samples of each row."""
        return estimates.summary(*self._draw(batch, self.hparams["num_samples"]))[self.hparams["point"]]

    def _draw(self, batch: TextBatch, num_samples: int) -> tuple[Tensor, Tensor]:
        return self.draw(batch, num_samples, derive(global_seed(), "predict"))

    def evaluate(self, batch: TextBatch) -> dict[str, Tensor]:
        is_fitting = self.trainer.state.fn == "fit"
        samples, log_prob = self._draw(batch, self.val_samples if is_fitting else self.hparams["num_samples"])
        return {
            "loss": self.losses(batch),
            "prediction": estimates.summary(samples, log_prob)[self.hparams["point"]],
            "target": batch.targets,
            "nll": -self.log_probs(batch),
            "crps": estimates.crps(samples, batch.targets),
            "pit": estimates.pit(samples, batch.targets),
        }

    def compute_metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        means = {name: float(outputs[name].mean()) for name in ("nll", "crps")}
        coverage = {f"coverage_{level}": estimates.coverage(outputs["pit"], level / 100) for level in (50, 90)}
        return super().compute_metrics(outputs) | means | coverage

    @property
    def _validates_loss_only(self) -> bool:
        return self.val_samples == 0 and self.trainer.state.fn == "fit"

    def validation_step(self, batch: TextBatch, batch_idx: int) -> dict[str, Tensor]:
        if not self._validates_loss_only:
            return super().validation_step(batch, batch_idx)
        self.check_batch(batch)
        losses = self.losses(batch)
        self.log("val_loss", losses.mean(), prog_bar=True, batch_size=len(losses), sync_dist=True)
        return {"loss": losses}

    def on_validation_epoch_end(self) -> None:
        if not self._validates_loss_only:
            super().on_validation_epoch_end()

    def predict_step(self, batch: TextBatch, batch_idx: int) -> list[dict[str, Any]]:
        """For each text the fields of every regressor, "median", "mean", "std", "mode", "quantiles" by level, "samples"
        with keep_samples, and "pit" where the target is known."""
        self.check_inputs(batch)
        samples, log_prob = self._draw(batch, self.hparams["num_samples"])
        values = estimates.summary(samples, log_prob)
        pit = estimates.pit(samples, batch.targets)
        rows = []
        for i, (index, text, target) in enumerate(zip(batch.index.tolist(), batch.texts, batch.targets, strict=True)):
            row: dict[str, Any] = {"index": index, "input": text}
            row["prediction"] = to_json(values[self.hparams["point"]][i])
            row |= {name: to_json(values[name][i]) for name in ("median", "mean", "std", "mode")}
            quantiles = values["quantiles"][i]  # (K, 5)
            row["quantiles"] = {f"{q:g}": to_json(quantiles[:, j]) for j, q in enumerate(estimates.QUANTILES)}
            if self.hparams["keep_samples"]:
                row["samples"] = samples[i].squeeze(-1).tolist()
            rows.append(row | target_fields(target, pit=pit[i]))
        return rows


def _read_weights(path: str) -> dict[str, Tensor]:
    """The module's state dict from a checkpoint of the zoo or of upstream."""
    checkpoint = read_checkpoint(path)
    if "zoo" in checkpoint:
        return read_checkpoint(path, required=("state_dict",))["state_dict"]
    return {f"model.{name}": tensor for name, tensor in load_upstream(path).state_dict().items()}
