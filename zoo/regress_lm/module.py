"""RegressLM in Lightning: loss, evaluation and predictions. The class with the Python API is in api.py."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError, check_choice, check_counts, check_number, check_weight
from zoo.layers.lora import add_lora
from zoo.layers.token_nll import token_nll
from zoo.layers.widen import widen
from zoo.optim import OptimizerConfig
from zoo.regress_lm import decoding, estimates
from zoo.regress_lm.encoder_pretraining import EncoderPretrainer
from zoo.regress_lm.initial_weights import settings_of_weights
from zoo.regress_lm.limited_time import choose_within_budget
from zoo.regress_lm.model import EncoderDecoder, RegressLMConfig
from zoo.regress_lm.number_formats import NumberFormat, number_tokenizer
from zoo.regress_lm.number_sampler import Calibration
from zoo.regress_lm.prediction_rows import prediction_rows
from zoo.regress_lm.pretrained_encoder import EncoderMode, pretrained_encoder
from zoo.regress_lm.target_warnings import warn_of_targets, warn_of_unscored
from zoo.regress_lm.vocabulary import NumberVocabulary
from zoo.tokenizers import Tokenizer
from zoo.training.batches import TextBatch, n_given_rows, targets_and_features
from zoo.training.choices import Choice, choose_monitor, settings_of
from zoo.training.fixed_arguments import field_names
from zoo.training.language_model import required_vocab_size
from zoo.training.random_streams import derive
from zoo.training.settings import part, refuse_derived
from zoo.training.unlabelled_texts import UnlabelledTexts


@dataclass
class RegressLMSettings(OptimizerConfig, RegressLMConfig):
    """All settings of a RegressLM and its training."""

    weight_decay: float = 0.01


class RegressLMModule(EncoderPretrainer):
    """Text in, distribution over numbers out: an encoder reads any text, a decoder generates the number's tokens.

    Logged in addition to the scores of every regressor: `nll`, nats per row under the constrained distribution that is
    sampled from (a target whose sign or exponent no training target has is scored without that restriction, since its
    probability is 0); `crps`; `coverage_50` and `coverage_90`, the shares of targets inside the intervals from 25% to
    75% and from 5% to 95% of the "quantiles" that predictions contain.

    Args:
        number_format: tokens of a number: "ieee" (sign, exponent, mantissa), "p10" (sign, mantissa, a token for the
            power of ten) or "normalized" (digits of a target in [0, 1]).
        number_digits: significant digits of a number, at least 1. Default: 4, and 3 for "normalized".
        number_exponent: for "ieee" the exponent's digits (default 1), for "p10" the largest power (10); at least 1.
        special_values: targets may be NaN, infinite or "invalid" in the Python API; data modules refuse such rows.
        n_objectives: K, the number of targets of each text; the command line takes it from the data.
        z_loss: weight of log(Z)^2 in the loss, at least 0, which keeps the softmax's normaliser Z near 1; 0 turns it
            off.
        point: the point estimate that scores and predictions use, "median", "mean" or "mode" of the samples.
        num_samples: samples of each number in validate, test and predict, at least 1.
        val_samples: samples of each number in the validations of a fit, at least 0; 0 computes the loss only.
        keep_samples: whether predictions list the samples.
        temperature: divides the logits of samples, at least 0; 1 keeps the distribution, 0 takes the likeliest token.
        calibration: what each validation of a fit fits on the validation rows, and predictions use: "none";
            "temperature", which divides the logits of each of a number's tokens, by the likelihood; or "conformal",
            which also moves the predicted quantiles, so that each has its share of the validation targets below it, at
            the cost of `num_samples` samples for each of at most about 2,000 validation rows. A table with synthetic
            rows and fewer than 300 validation rows is calibrated on targets that the teacher draws; with fewer than 39
            validation rows of other data "conformal" is "temperature".
        unseen_exponents: whether samples may have signs and exponents that no training target has, and be outside the
            range of the training targets by more than 10% of it; without effect on number_format=normalized.
        lora_rank: train low-rank updates of this rank only, at least 0; 0 trains all weights. With encoder_mode=lora
            the rank of the updates of the encoder, while all weights of the decoder are trained.
        lora_alpha: the update is multiplied by lora_alpha / lora_rank; any finite number.
        encoder: a pretrained encoder that transformers' AutoModel loads (a folder, or a name on the hub), with its own
            tokenizer, in place of an encoder with random weights; of an encoder-decoder such as T5 the encoder only.
            n_encoder_layers is then not used, and max_input_len is at most the encoder's. The decoder reads the
            encoder's states through a norm, dropout (`residual_dropout`) and a linear map to dim. Default: none.
        encoder_mode: "frozen" (the encoder's states do not change, and each text is encoded once), "lora" (low-rank
            updates of the encoder's matrices are trained) or "full" (all its weights are trained). Checkpoints hold
            all weights with "full", and otherwise need the same encoder at the same place.
        encoder_lr: peak learning rate of the encoder's trained weights, at least 0.
        encoder_cache: whether training stores the states of a frozen encoder on disk, in $ZOO_CACHE or ~/.cache/zoo.
        encoder_config: configuration of the encoder, which checkpoints with encoder_mode=full store; not to be given.
        pretrain_steps: steps, at least 1, of span denoising on the data's unlabelled texts, if any, before training.
        weights: checkpoint with initial weights, of the zoo or of upstream, or "zoo:regress-lm", pretrained on random
            tables. Embeddings of words are transferred by word. Default: random weights.
        round_digits: significant digits to which the numbers in texts are rounded before the tokenizer, None for no
            rounding; the command line takes it from the data. Texts passed to the Python API are rounded likewise.
        power_tokens: whether rounded numbers in texts are a mantissa and a power of ten; the command line takes it from
            the data.
        vocab_size: number of token ids; the command line takes it from the data's tokenizer.
        tokenizer: the tokenizer of the data, stored in checkpoints; the command line takes it from the data.
        target_names: names of the K targets, for the metrics of several targets; the command line takes them from the
            data. Default: "objective_1" and so on.
        unlabelled_texts: texts on which a fit pretrains the encoder; the command line takes them from the data.
        **settings: the other fields of `RegressLMConfig`, and those of `OptimizerConfig`.
    """

    internal_arguments: ClassVar[tuple[str, ...]] = ("encoder_config",)
    data_arguments: ClassVar[tuple[str, ...]] = (
        *EncoderPretrainer.data_arguments, "round_digits", "power_tokens", "unlabelled_texts",
    )  # fmt: skip
    fixed_arguments: ClassVar[tuple[str, ...]] = (
        *EncoderPretrainer.fixed_arguments,
        *field_names(RegressLMConfig, "dropout", "residual_dropout", "gradient_checkpointing"),
        "number_format", "number_digits", "number_exponent", "special_values", "lora_rank", "lora_alpha",
        "encoder_mode", "encoder_config", "pretrain_steps",
    )  # fmt: skip
    network_arguments = "n_heads", "n_encoder_heads", "number_format", "number_digits", "number_exponent", "lora_alpha"
    renamed_arguments: ClassVar[dict[str, str]] = {
        "numbers": "number_format",
        "digits": "number_digits",
        "exponent": "number_exponent",
        "hidden_mult": "hidden_dim",
    }
    output_fields = ("loss", "prediction", "target", "nll", "crps", "pit", "quantiles")
    sharded_methods: ClassVar[tuple[str, ...] | None] = ()

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
        val_samples: int = 32,
        keep_samples: bool = False,
        temperature: float = 1.0,
        calibration: Calibration = "conformal",
        unseen_exponents: bool = False,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        encoder: str | None = None,
        encoder_mode: EncoderMode = "frozen",
        encoder_lr: float = 1e-4,
        encoder_cache: bool = True,
        encoder_config: str | None = None,
        pretrain_steps: int = 1000,
        weights: str | None = None,
        round_digits: int | None = None,
        power_tokens: bool = False,
        vocab_size: int | None = None,
        tokenizer: Tokenizer | None = None,
        target_names: list[str] | None = None,
        unlabelled_texts: UnlabelledTexts | None = None,
        **settings: Any,
    ) -> None:
        sources = "number_format, number_digits, number_exponent, special_values and n_objectives"
        refuse_derived(settings, number_vocab_size=sources, number_len=sources)
        check_choice("point", point, ("median", "mean", "mode"))
        check_choice("calibration", calibration, get_args(Calibration))
        check_counts(n_objectives=n_objectives, num_samples=num_samples, pretrain_steps=pretrain_steps)
        check_counts(0, val_samples=val_samples, lora_rank=lora_rank)
        check_weight("temperature", temperature)
        check_weight("z_loss", z_loss)
        check_number("lora_alpha", lora_alpha, "finite", math.isfinite)
        check_choice("encoder_mode", encoder_mode, ("frozen", "lora", "full"))
        check_weight("encoder_lr", encoder_lr)
        formatter = number_tokenizer(number_format, number_digits, number_exponent, special_values)
        vocabulary = NumberVocabulary(formatter, n_objectives)
        vocab_size = required_vocab_size(vocab_size, tokenizer, "RegressLM")  # stored in checkpoints
        config = RegressLMSettings(
            vocab_size=vocab_size,
            number_vocab_size=vocabulary.size,
            number_len=vocabulary.length,
            **settings,
        )
        pretrained = pretrained_encoder(encoder, encoder_config, config, encoder_mode, lora_rank, lora_alpha, tokenizer)
        network = EncoderDecoder(part(config, RegressLMConfig), pretrained)
        super().__init__(network, config, vocabulary, tokenizer, target_names)
        self.save_hyperparameters(ignore=["tokenizer", "unlabelled_texts"])
        self.hparams.update(self.encoder_settings())
        self.unlabelled_texts = unlabelled_texts
        self.val_samples = val_samples
        self._has_warned = False  # of targets of an evaluation that are clamped
        self.dropout_seed: int | None = None
        """Seed of dropout in `fine_tune`; None for the seed of the run."""
        if weights:
            self.load_state_dict(self.read_weights(weights))
            self.hparams["weights"] = None  # a checkpoint of this module must not need the file it started from
        if lora_rank and pretrained is None:
            add_lora(self.model, lora_rank, lora_alpha)

    @classmethod
    def choose_settings(cls, data: Any, given: Mapping[str, Any]) -> list[Choice]:
        """Settings that follow from the data, by the rules in `zoo.regress_lm.defaults`.

        The sizes of `weights` and their format of numbers are read from the file.

        Args:
            data: a data module with `statistics()`.
            given: the settings that are already decided, by option.

        Raises:
            UserError: the data does not consist of texts with numbers, or the weights cannot be read.
        """
        if not hasattr(data, "statistics"):
            raise UserError(
                f"{type(data).__name__} has no texts with numbers for {cls.__name__}: give --data=TextRegression"
            )
        of_weights = settings_of_weights(given)
        decided = dict(given) | settings_of(of_weights)
        chosen = choose_within_budget(data, decided)
        return [*of_weights, *chosen, *choose_monitor(getattr(data, "n_objectives", 1))]

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
        self._check_training_targets()
        super().on_train_start()

    def _check_training_targets(self) -> None:
        """Warn once of training targets that the number tokenizer clamps to its range or cannot distinguish."""
        try:
            targets, _ = targets_and_features(self.trainer.train_dataloader)
        except TypeError:  # batches from another kind of dataset train as well
            return
        self.check_objectives(targets.shape[1])
        self.check_targets(torch.from_numpy(targets), range(len(targets)))
        # An absent number has the first target of its column in its place, which adds no sign or exponent.
        is_absent = self._is_absent(targets)
        first = targets[is_absent.argmin(0), np.arange(self.n_objectives)]
        first = np.where(is_absent.all(0), 0.0, first)
        tokens = self.vocabulary.encode(np.where(is_absent, first, targets))
        self.set_magnitudes(tokens)
        if self.trainer.is_global_zero:
            given = slice(n_given_rows(self.trainer.train_dataloader))
            warn_of_targets(self.vocabulary, targets[given], is_absent[given], tokens[given], self.hparams)

    def on_train_batch_start(self, batch: TextBatch, batch_idx: int) -> None:
        if self.dropout_seed is None:
            super().on_train_batch_start(batch, batch_idx)
        else:
            torch.manual_seed(derive(self.dropout_seed, "step", self.global_step))

    def check_targets(self, targets: Tensor, index: Sequence[int] | Tensor) -> None:
        """Targets must be finite, unless special_values is on; those after a row's last number may be NaN: absent."""
        if not self.hparams["special_values"]:
            is_absent = torch.from_numpy(self._is_absent(targets.cpu().numpy())).to(targets.device)
            super().check_targets(targets.masked_fill(is_absent, 0.0), index)

    def _is_absent(self, targets: np.ndarray) -> np.ndarray:
        """(B, K) bool: whether a target of (B, K) is NaN and follows the last number of a row that has one."""
        if self.hparams["special_values"]:  # NaN is then a value
            return np.zeros(targets.shape, dtype=bool)
        is_number = ~np.isnan(targets)
        follow = np.flip(np.logical_or.accumulate(np.flip(is_number, 1), 1), 1)  # itself or a later one is a number
        return ~follow & is_number[:, :1]

    def _has_unknown(self, targets: np.ndarray) -> bool:
        """Whether a target of (B, K) is NaN and neither a special value nor absent."""
        return not self.hparams["special_values"] and bool((np.isnan(targets) & ~self._is_absent(targets)).any())

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        batch = super().on_before_batch_transfer(batch, dataloader_idx)
        if not isinstance(batch, TextBatch):
            return batch
        is_scored = self.trainer.evaluating or self.trainer.sanity_checking
        if is_scored and not self._validates_loss_only:
            self._check_complete(batch.targets)
        if is_scored and not self._has_warned:
            self._has_warned = warn_of_unscored(self.vocabulary, batch.targets.numpy())
        return self.with_number_tokens(batch)

    def _check_complete(self, targets: Tensor) -> None:
        """Raises UserError if a number of the targets (B, K), on the CPU, is absent."""
        if self._is_absent(targets.numpy()).any():
            raise UserError(
                f"a row has fewer than {self.n_objectives} targets, but scores need all of them: set val_samples to 0 "
                "to validate by the loss only"
            )

    def with_number_tokens(self, batch: TextBatch) -> TextBatch:
        """The batch, on the CPU, with its targets' number tokens; rows to predict may be without targets."""
        if self._has_unknown(batch.targets.cpu().numpy()):
            return batch
        return batch._replace(numbers=self.encode_targets(batch))

    def encode_targets(self, batch: TextBatch) -> Tensor:
        """Number tokens (B, L) of the batch's targets; 0, which is not scored, for absent ones."""
        if batch.numbers is not None:
            return batch.numbers
        targets = batch.targets.cpu().numpy()
        is_absent = self._is_absent(targets)
        if self._has_unknown(targets):
            raise UserError("these rows have no targets whose loss or probability could be computed")
        tokens = self.vocabulary.encode(np.where(is_absent, 0.0, targets))  # `on_train_start` warns of clamped targets
        each = self.vocabulary.tokenizer.num_tokens
        return tokens.masked_fill(torch.from_numpy(is_absent.repeat(each, axis=1)), 0).to(batch.targets.device)

    def log_probs(self, batch: TextBatch) -> Tensor:
        """(B,) log-probability of each row's targets in nats, under the constrained distribution."""
        numbers = self.encode_targets(batch)
        return decoding.log_prob(self.model, self.vocabulary, batch.tokens, batch.padding_mask, numbers)

    def losses(self, batch: TextBatch) -> Tensor:
        """(B,) mean cross-entropy of a row's number tokens in nats, without those of absent numbers; and the z-loss."""
        numbers = self.encode_targets(batch)
        return self._losses_of_logits(self.model(batch.tokens, numbers, batch.padding_mask), numbers)

    def _losses_of_logits(self, logits: Tensor, numbers: Tensor) -> Tensor:
        logits = widen(logits)  # (B, L, V)
        losses = token_nll(logits, numbers, ignored=0)  # (B, L)
        is_scored = numbers != 0
        if z_loss := self.hparams["z_loss"]:
            losses = losses + z_loss * logits.logsumexp(-1).square() * is_scored
        return losses.sum(1) / is_scored.sum(1)

    # ---- evaluation

    def calibrate(self, batches: Iterable[TextBatch]) -> None:
        """As `NumberSampler.calibrate`; rows with absent numbers cannot calibrate, and then nothing is calibrated."""
        batches = [] if self.hparams["calibration"] == "none" else list(batches)
        # A single number cannot be absent.
        has_several = self.n_objectives > 1
        has_absent = has_several and any(self._is_absent(batch.targets.cpu().numpy()).any() for batch in batches)
        super().calibrate([] if has_absent else batches)

    def estimate(self, batch: TextBatch) -> Tensor:
        """(B, K) the chosen point estimate from `num_samples` samples of each row."""
        return estimates.summary(*self.draw_for_rows(batch, self.hparams["num_samples"]))[self.hparams["point"]]

    def evaluate(self, batch: TextBatch) -> dict[str, Tensor]:
        if batch.targets.device.type == "cpu":  # a batch on a GPU was checked before it was moved
            self._check_complete(batch.targets)
        is_fitting = self.trainer.state.fn == "fit"
        samples, log_prob = self.draw_for_rows(batch, self.val_samples if is_fitting else self.hparams["num_samples"])
        values = self.summarize(samples, log_prob, batch.targets)
        # The loss and the log-probability of the targets have the same logits.
        numbers = self.encode_targets(batch)
        logits = self.model(batch.tokens, numbers, batch.padding_mask)
        log_probs, without_restriction = (
            decoding.log_prob_of_logits(logits, vocabulary, numbers)
            for vocabulary in (self.vocabulary, self.vocabulary.unrestricted)
        )
        return {
            "loss": self._losses_of_logits(logits, numbers),
            "prediction": values[self.hparams["point"]],
            "target": batch.targets,
            "nll": -log_probs.where(log_probs > -torch.inf, without_restriction),
            "crps": estimates.crps(samples, batch.targets),
            "pit": values["pit"],
            "quantiles": values["quantiles"],
        }

    def compute_metrics(self, outputs: dict[str, np.ndarray]) -> dict[str, float]:
        return super().compute_metrics(outputs) | {"nll": float(outputs["nll"].mean())}

    def scores_by_target(self, outputs: dict[str, np.ndarray]) -> list[dict[str, float]]:
        columns = super().scores_by_target(outputs)
        return [column | estimates.scores_of_target(outputs, k) for k, column in enumerate(columns)]

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
        samples, log_prob = self.draw_for_rows(batch, self.hparams["num_samples"])
        values = self.summarize(samples, log_prob, batch.targets)
        kept = samples if self.hparams["keep_samples"] else None
        return prediction_rows(batch, values, self.hparams["point"], self.name_fields(), kept)
