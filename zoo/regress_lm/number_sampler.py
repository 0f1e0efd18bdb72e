"""Samples of numbers for texts, from a distribution that is restricted to the training targets' signs, exponents and
extended range, and calibrated on validation rows."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from zoo.generation.decoders import evaluating
from zoo.optim import OptimizerConfig
from zoo.regress_lm import decoding, estimates
from zoo.regress_lm.automaton import Pattern
from zoo.regress_lm.calibration import (
    LEVELS,
    MOST_ROWS,
    TEMPERATURES,
    Offsets,
    check_stored,
    fit_offsets,
    fit_temperatures,
    move_samples,
    spread_of,
)
from zoo.regress_lm.model import EncoderDecoder
from zoo.regress_lm.vocabulary import NumberVocabulary
from zoo.tokenizers import Tokenizer
from zoo.training.batches import TextBatch, collate
from zoo.training.random_streams import derive, global_seed
from zoo.training.regression_metrics import GatheredOutputs
from zoo.training.regressor import Regressor

BATCH = 256  # rows for calibration at a time
Calibration = Literal["none", "temperature", "conformal"]


class NumberSampler(Regressor):
    """Regressor whose network generates number tokens. It samples numbers, and fits and stores their calibration.

    A subclass has the settings `num_samples`, `temperature`, `calibration` and `unseen_exponents`.

    Args:
        network: generates number tokens.
        optimizer_config: settings of the optimizer and its schedule.
        vocabulary: the number tokens, of K objectives.
        tokenizer: tokenizer of the texts; stored in checkpoints.

    Attributes:
        vocabulary: the distribution that is sampled, with what has been fitted.
        calibrates_in_fit: whether each validation of a fit calibrates first.
        magnitudes: for each objective the signs, exponents and first digits that the training targets admit; None
            before training.
        temperatures: (num_tokens,) those that were fitted; None before.
        offsets: conformal offsets; None if they were not fitted.
    """

    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        **Regressor.charts,
        "distribution": ("val/nll", "val/crps"),
        "coverage of predicted intervals": ("val/coverage_.*",),
    }

    def __init__(
        self,
        network: EncoderDecoder,
        optimizer_config: OptimizerConfig,
        vocabulary: NumberVocabulary,
        tokenizer: Tokenizer | None = None,
        target_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(network, optimizer_config, vocabulary.n_objectives, tokenizer, target_names)
        self.vocabulary = vocabulary
        self.calibrates_in_fit = True
        self.magnitudes: list[list[Pattern]] | None = None
        self.temperatures: list[float] | None = None
        self.offsets: Offsets | None = None

    @abstractmethod
    def encode_targets(self, batch: TextBatch) -> Tensor:
        """Number tokens (B, L) of the batch's targets."""

    # ---- sampling

    def draw(self, batch: TextBatch, num_samples: int, seed: int) -> tuple[Tensor, Tensor]:
        """Samples (B, S, K) in float64 and their log-probabilities (B, S); a row's draws depend on index and seed."""
        h: Any = self.hparams
        ids, log_prob = decoding.sample(
            self.model, self.vocabulary, batch.tokens, batch.padding_mask, num_samples,
            temperature=h.temperature, seed=seed, rows=batch.index,
        )  # fmt: skip
        return torch.from_numpy(self.vocabulary.decode(ids.cpu())).to(ids.device), log_prob

    def summarize(self, samples: Tensor, log_prob: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """`estimates.summary` of samples (B, S, K), with conformal quantiles if they are calibrated, and the "pit" of
        targets (B, K) under the distribution that the quantiles describe."""
        values = estimates.summary(samples, log_prob)
        if self.hparams["calibration"] == "conformal" and self.offsets is not None:
            samples = move_samples(samples, self.offsets)
            values["quantiles"] = estimates.quantiles(samples, estimates.QUANTILES)
            values["quantiles"][..., 2] = values["median"]
        return values | {"pit": estimates.pit(samples, targets)}

    def draw_for_rows(self, batch: TextBatch, num_samples: int) -> tuple[Tensor, Tensor]:
        """`draw` with the seed of the run."""
        return self.draw(batch, num_samples, derive(global_seed(), "predict"))

    def set_magnitudes(self, numbers: Tensor) -> None:
        """Restrict the distribution by the training targets' number tokens (N, L), as `magnitudes_of` describes."""
        self.magnitudes = self.vocabulary.magnitudes_of(numbers)
        self._update_vocabulary()

    # ---- calibration

    def on_validation_epoch_start(self) -> None:
        """Calibrate the weights that this validation scores, so that their checkpoint has their calibration."""
        super().on_validation_epoch_start()
        if self.trainer.state.fn == "fit" and self.calibrates_in_fit and not self.trainer.sanity_checking:
            self.calibrate(self._calibration_batches())

    def _calibration_batches(self) -> Iterator[TextBatch]:
        """Batches of the loader's rows for calibration, if it has any, else those of the validation that begins.

        Iterating over a DataLoader must not change torch's generator.
        """
        loader: Any = self.trainer.val_dataloaders
        [limit] = self.trainer.num_val_batches
        if rows := getattr(loader, "calibration_rows", ()):
            loader, limit = [collate(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)], math.inf
        with torch.random.fork_rng(devices=[]):
            for i, batch in enumerate(loader):
                if i >= limit:
                    return
                self.check_batch(batch)
                batch = self.on_before_batch_transfer(batch, 0)
                yield self.trainer.strategy.batch_to_device(batch, self.device)

    @torch.inference_mode()
    def calibrate(self, batches: Iterable[TextBatch]) -> None:
        """Fit what `calibration` names on batches of rows that the model was not trained on.

        Args:
            batches: on the model's device. With several processes each has its share of them. Where one process has
                none, the model is not calibrated.
        """
        self.temperatures = self.offsets = None
        self._update_vocabulary()
        if self.hparams["calibration"] == "none":
            return
        batches = list(batches)
        n_batches = torch.tensor(len(batches))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # A process without batches would not collect the results of all, for which the others would wait.
            n_batches = n_batches.to(self.device)
            torch.distributed.all_reduce(n_batches, torch.distributed.ReduceOp.MIN)
        if not n_batches:
            return
        with evaluating(self.model):
            self.temperatures = self._fit_temperatures(batches)
            self._update_vocabulary()
            if self.hparams["calibration"] == "conformal":
                self.offsets = self._fit_offsets(batches)

    def _fit_temperatures(self, batches: Sequence[TextBatch]) -> list[float]:
        """(num_tokens,) temperatures from the log-likelihoods of the targets at all `TEMPERATURES`."""
        sums = GatheredOutputs(("log_probs",)).to(self.device)
        for batch in batches:
            numbers = self.encode_targets(batch)
            logits = self.model(batch.tokens, numbers, batch.padding_mask)
            log_probs = decoding.log_probs_by_temperature(logits, self.vocabulary, numbers, TEMPERATURES)
            # Tokens without a probability do not count, nor do later ones: the automaton's state is undefined there.
            is_forbidden = log_probs.isneginf().cumsum(2) > 0
            log_probs = log_probs.masked_fill(is_forbidden, 0.0)  # (B, G, L)
            by_token = log_probs.unflatten(2, (-1, self.vocabulary.tokenizer.num_tokens)).sum((0, 2))  # (G, T)
            sums.update(log_probs=by_token.unsqueeze(0))
        return fit_temperatures(torch.from_numpy(sums.compute()["log_probs"].sum(0)))

    def _fit_offsets(self, batches: Sequence[TextBatch]) -> Offsets | None:
        """Offsets from the residuals of the targets from the quantiles of the distribution at its temperatures."""
        rows = GatheredOutputs(("quantiles", "spread", "targets")).to(self.device)
        step = max(1, sum(len(batch.index) for batch in batches) // MOST_ROWS)
        for batch in batches[::step]:
            # Copies of a row, which have equal samples, are sampled once.
            keys = list(zip(batch.index.tolist(), batch.texts, strict=True))
            distinct = list(dict.fromkeys(keys))
            copy_of = [distinct.index(key) for key in keys]
            samples, _ = self.draw_for_rows(
                batch.select([keys.index(key) for key in distinct]), self.hparams["num_samples"]
            )
            by_level, spread = estimates.quantiles(samples, LEVELS), spread_of(samples)
            rows.update(quantiles=by_level[copy_of], spread=spread[copy_of], targets=batch.targets)
        return fit_offsets(*(rows.compute()[name] for name in rows.names))

    def _update_vocabulary(self) -> None:
        """Give the vocabulary what has been fitted, as far as the settings use it."""
        self.vocabulary = NumberVocabulary(
            self.vocabulary.tokenizer,
            self.n_objectives,
            None if self.hparams["unseen_exponents"] else self.magnitudes,
            None if self.hparams["calibration"] == "none" else self.temperatures,
        )

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        values, floor = self.offsets or (None, None)
        fitted = {"magnitudes": self.magnitudes, "temperatures": self.temperatures, "offsets": values, "floor": floor}
        checkpoint["calibration"] = fitted

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "calibration" not in checkpoint:  # written by an earlier version
            return
        v = self.vocabulary
        stored = check_stored(checkpoint["calibration"], v.tokenizer.num_tokens, self.n_objectives, v.size)
        self.magnitudes, self.temperatures = stored["magnitudes"], stored["temperatures"]
        self.offsets = None if stored["offsets"] is None else Offsets(stored["offsets"], stored["floor"])
        self._update_vocabulary()
