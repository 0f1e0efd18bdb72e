"""RegressLM in Lightning, and in Python: text in, number out, with its whole distribution.

    regress_lm = RegressLM.from_scratch(max_input_len=2048)
    regress_lm.fine_tune([Example(x="hello", y=0.3), Example(x="world", y=-0.3)])
    samples1, samples2 = regress_lm.sample([ExampleInput(x="hi"), ExampleInput(x="bye")], num_samples=128)
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError
from zoo.layers.lora import add_lora
from zoo.registry import registered_name
from zoo.regress_lm import decoding as decode
from zoo.regress_lm import estimates, fine_tuning
from zoo.regress_lm.example import Example, ExampleInput
from zoo.regress_lm.model import EncoderDecoder, RegressLMConfig, load_upstream
from zoo.regress_lm.number_tokenizers import number_tokenizer
from zoo.regress_lm.vocabulary import NumberVocabulary
from zoo.tokenizers import Tokenizer, from_state, load_tokenizer
from zoo.tokenizers.numerals import rounded
from zoo.training.batches import Row, TextBatch, collate
from zoo.training.checkpoint_file import read_checkpoint
from zoo.training.random_streams import derive, global_seed
from zoo.training.regressor import Regressor, known, plain


class RegressLM(Regressor):
    """Text in, number out: an encoder reads any string, a decoder spells the number token by token.

    Beside the scores of every regressor it logs the law's: `nll`, nats per row under the constrained law that is
    sampled; `crps`; `coverage_50` and `coverage_90`, the shares of targets in the central intervals of that name.

    Args:
        numbers: how numbers are spelt: "ieee" (sign, exponent, mantissa), "p10" (sign, mantissa, a token for the power
            of ten) or "normalized" (targets in [0, 1]).
        digits: significant digits of a number; by default 4, of "normalized" 3.
        exponent: "ieee": digits of the exponent (1); "p10": the largest power of ten (10).
        special_values: NaN, infinities and "invalid" can be targets too, in Python; tables with them are refused.
        n_objectives: K numbers for each text.
        z_loss: weight of log(Z)^2, which keeps the logits' normaliser near 1; averaged as the loss is.
        point: the estimate that scores and predictions are of: the samples' "median", "mean" or "mode".
        num_samples: samples of each number in validate, test and predict.
        val_samples: the same in the validations of a fit.
        keep_samples: predictions list their samples.
        temperature: of the samples; 1 is the model's own law, 0 its likeliest tokens.
        lora_rank: train low-rank updates of this rank only; 0 trains every weight.
        lora_alpha: their scale is lora_alpha / lora_rank.
        weights: start from these: a checkpoint of ours or of upstream's.
        optimizer: "adamw", "adafactor", or "muon" (Muon for the layers' matrices, AdamW for the rest).
        lr: peak learning rate.
        muon_lr: the same for the matrices that are Muon's.
        warmup_steps: optimizer steps of linear warm-up.
        min_lr_ratio: the cosine ends at this share of `lr`.
        beta1, beta2: AdamW's decay rates.
        weight_decay: decoupled decay of the matrices.
        **architecture: the fields of `RegressLMConfig`. `vocab_size` follows the data's tokenizer.
    """

    columns = ("loss", "prediction", "target", "nll", "crps", "pit")
    # Of a model made in Python, or loaded; on the command line both are the data's.
    tokenizer: Tokenizer | None = None
    rounding: tuple[int, bool] | None = None  # (digits, powers) of the numbers in the texts that it was trained on

    def __init__(
        self,
        numbers: Literal["ieee", "p10", "normalized"] = "ieee",
        digits: int | None = None,
        exponent: int | None = None,
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
        optimizer: Literal["adamw", "adafactor", "muon"] = "adamw",
        lr: float = 1e-3,
        muon_lr: float = 0.01,
        warmup_steps: int = 100,
        min_lr_ratio: float = 0.1,
        beta1: float = 0.9,
        beta2: float = 0.95,
        weight_decay: float = 0.01,
        **architecture: Any,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        spelling = number_tokenizer(numbers, digits, exponent, special_values)
        self.vocabulary = NumberVocabulary(spelling, n_objectives)
        config = RegressLMConfig(
            number_vocab_size=self.vocabulary.size, number_len=self.vocabulary.length, **architecture
        )
        self.model = EncoderDecoder(config)
        if weights:
            self.load_state_dict(_weights(weights))
            self.hparams["weights"] = None  # a checkpoint of this module must not need the file it started from
        if lora_rank:
            add_lora(self.model, lora_rank, lora_alpha)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        longest, limit = self.data.max_input_len, self.model.config.max_input_len
        if longest > limit:
            raise UserError(f"data.max_input_len {longest} is beyond the model's max_input_len {limit}: raise that")
        if stage == "fit":
            self.vocabulary.encode(self.data.targets("train"))  # says, once, what it clamps or cannot spell

    # ---- loss

    def on_before_batch_transfer(self, batch: TextBatch, dataloader_idx: int) -> TextBatch:
        """Spell the targets while they are still on the CPU; a row to be predicted may have none."""
        if batch.targets.isnan().any() and not self.hparams["special_values"]:
            return batch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `setup` has said what is clamped
            return batch._replace(numbers=self.vocabulary.encode(batch.targets.numpy()))

    def log_probs(self, batch: TextBatch) -> Tensor:
        """(B,) nats under the constrained law."""
        if batch.numbers is None:
            raise UserError("these rows have no numbers whose probability could be told")
        return decode.log_prob(self.model, self.vocabulary, batch.tokens, batch.padding_mask, batch.numbers)

    def losses(self, batch: TextBatch) -> Tensor:
        """(B,) cross-entropy per number token in nats, and the z-loss; padding between objectives does not count."""
        numbers = batch.numbers
        assert numbers is not None
        logits = self.model(batch.tokens, numbers, batch.padding_mask).float()  # (B, L, V)
        losses = F.cross_entropy(logits.mT, numbers, ignore_index=0, reduction="none")  # (B, L)
        spoken = numbers != 0
        if z_loss := self.hparams["z_loss"]:
            losses = losses + z_loss * logits.logsumexp(-1).square() * spoken
        return losses.sum(1) / spoken.sum(1)

    # ---- evaluation

    def draw(self, batch: TextBatch, num_samples: int, seed: int) -> tuple[Tensor, Tensor]:
        """Samples (B, S, K) in float64 and their log-probabilities (B, S); a row's own are drawn from its index."""
        h: Any = self.hparams
        ids, log_prob = decode.sample(
            self.model, self.vocabulary, batch.tokens, batch.padding_mask, num_samples,
            temperature=h.temperature, seed=seed, rows=batch.index,
        )  # fmt: skip
        return torch.from_numpy(self.vocabulary.decode(ids.cpu())).to(ids.device), log_prob

    def estimate(self, batch: TextBatch) -> Tensor:
        return estimates.summary(*self._draw(batch))[self.hparams["point"]]

    def _draw(self, batch: TextBatch) -> tuple[Tensor, Tensor]:
        fitting = self.trainer.state.fn == "fit"
        num_samples = self.hparams["val_samples" if fitting else "num_samples"]
        return self.draw(batch, num_samples, derive(global_seed(), "predict"))

    def evaluate(self, batch: TextBatch) -> dict[str, Tensor]:
        samples, log_prob = self._draw(batch)
        return {
            "loss": self.losses(batch),
            "prediction": estimates.summary(samples, log_prob)[self.hparams["point"]],
            "target": batch.targets,
            "nll": -self.log_probs(batch),
            "crps": estimates.crps(samples, batch.targets),
            "pit": estimates.pit(samples, batch.targets),
        }

    def reached(self, columns: dict[str, np.ndarray]) -> dict[str, float]:
        means = {name: float(columns[name].mean()) for name in ("nll", "crps")}
        coverage = {f"coverage_{level}": estimates.coverage(columns["pit"], level / 100) for level in (50, 90)}
        return super().reached(columns) | means | coverage

    def predict_step(self, batch: TextBatch, batch_idx: int) -> list[dict[str, Any]]:
        """One row for every text: the text, the estimates, and what is known of its target."""
        samples, log_prob = self._draw(batch)
        found = estimates.summary(samples, log_prob)
        place = estimates.pit(samples, batch.targets)
        rows = []
        for i, (index, text, target) in enumerate(zip(batch.index.tolist(), batch.texts, batch.targets, strict=True)):
            row: dict[str, Any] = {"index": index, "input": text, "prediction": plain(found[self.hparams["point"]][i])}
            row |= {name: plain(found[name][i]) for name in ("median", "mean", "std", "mode")}
            row["quantiles"] = {f"{q:g}": plain(found["quantiles"][i, :, j]) for j, q in enumerate(estimates.QUANTILES)}
            row |= {"samples": samples[i].squeeze(-1).tolist()} if self.hparams["keep_samples"] else {}
            rows.append(row | known(target, pit=place[i]))
        return rows

    # ---- Python

    @classmethod
    def from_scratch(
        cls, max_input_len: int = 2048, *, tokenizer: str | Tokenizer = "bytes", seed: int = 0, **settings: Any
    ) -> Self:
        """A new model, on the GPU where there is one.

        Args:
            max_input_len: the longest text, in tokens. Short texts cost no more for it.
            tokenizer: of the texts: a `Tokenizer`, or what `load_tokenizer` takes.
            seed: of the initial weights.
            **settings: the arguments of `RegressLM`, sizes included.

        Raises:
            TypeError: an argument that does not exist.
        """
        speaks = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        with torch.random.fork_rng():
            torch.manual_seed(derive(seed, "weights"))
            model = cls(vocab_size=speaks.vocab_size, max_input_len=max_input_len, **settings)
        model.tokenizer = speaks
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    from_default = from_scratch

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A model that `save` or `zoo fit` has written, on the GPU where there is one."""
        model = cls.load_from_checkpoint(path, map_location="cpu", weights_only=True)
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.tokenizer = from_state(checkpoint["tokenizer"])
        read = checkpoint.get("datamodule_hyper_parameters", {})
        self.rounding = (read["digits"], read["powers"]) if read.get("digits") else None

    def save(self, path: str | Path) -> None:
        """Write a checkpoint that `load`, `zoo test`, `zoo predict` and `zoo fit --model.weights` read."""
        assert self.tokenizer is not None
        data: dict[str, Any] = {"max_input_len": self.model.config.max_input_len, "target_columns": None}
        if self.rounding:
            data["digits"], data["powers"] = self.rounding
        torch.save(
            {
                "state_dict": self.state_dict(),
                "hyper_parameters": dict(self.hparams),
                "datamodule_hyper_parameters": data,
                "tokenizer": self.tokenizer.state(),
                "zoo": {"model": registered_name(self), "data": "TextRegression"},
                "pytorch-lightning_version": lightning.__version__,
            },
            path,
        )

    def fine_tune(
        self,
        examples: Sequence[Example],
        validation_examples: Sequence[Example] | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> list[float]:
        """Train on `examples`, keeping the weights that are best on the validation examples.

        Options, their defaults and what is returned are those of `zoo.regress_lm.fine_tuning.fine_tune`.
        """
        return fine_tuning.fine_tune(self, examples, validation_examples, seed, **options)

    @torch.inference_mode()
    def sample(
        self,
        inputs: Sequence[ExampleInput],
        num_samples: int,
        temperature: float = 1.0,
        *,
        top_k: int | None = None,
        seed: int | None = None,
        batch_size: int = 64,
    ) -> list[np.ndarray]:
        """Draw numbers for every input: float64 arrays (num_samples,), or (num_samples, K) with K > 1 objectives.

        An input's samples depend on the seed and its place, not on its neighbours. Without a seed one is drawn from
        torch's global generator.
        """
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        drawn = []
        for batch in self.batches(inputs, batch_size):
            ids, _ = decode.sample(
                self.model, self.vocabulary, batch.tokens, batch.padding_mask, num_samples,
                temperature=temperature, top_k=top_k, seed=seed, rows=batch.index,
            )  # fmt: skip
            drawn += list(self.vocabulary.decode(ids.cpu()))
        return [s[:, 0] if self.vocabulary.n_objectives == 1 else s for s in drawn]

    @torch.inference_mode()
    def log_prob(self, examples: Sequence[Example], batch_size: int = 256) -> Tensor:
        """(B,) nats: the probability of each example's number, as spelt, under the law that `sample` draws from."""
        return torch.cat([self.log_probs(batch) for batch in self.batches(examples, batch_size)])

    @torch.inference_mode()
    def exact_mean(self, inputs: Sequence[ExampleInput]) -> np.ndarray:
        """(B, K) the mean of the whole law, summed over every number there is.

        Raises:
            ValueError: there are too many numbers to go through.
        """
        means = []
        for batch in self.batches(inputs, 1):
            ids, log_probs = decode.enumerate_law(self.model, self.vocabulary, batch.tokens, batch.padding_mask)
            means.append(log_probs.double().exp().cpu().numpy() @ self.vocabulary.decode(ids.cpu()))
        return np.concatenate(means)

    def batches(self, examples: Sequence[ExampleInput], batch_size: int) -> list[TextBatch]:
        """`examples` in their order, on the model's device, spelt out where they have numbers."""
        rows = self.rows(examples)
        made = [collate(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
        made = [self.on_before_batch_transfer(batch, 0) for batch in made]
        return [self.transfer_batch_to_device(batch, self.device, 0) for batch in made]

    def rows(self, examples: Sequence[ExampleInput]) -> list[Row]:
        """Texts to tokens, numbers to K targets.

        Raises:
            ValueError: an empty or too long text, or another number of targets than the model has.
        """
        assert self.tokenizer is not None
        k, limit = self.vocabulary.n_objectives, self.model.config.max_input_len
        rows = []
        texts = [rounded(e.x, *self.rounding) if self.rounding else e.x for e in examples]
        encoded = self.tokenizer.encode_batch(texts)
        for i, (example, ids) in enumerate(zip(examples, encoded, strict=True)):
            if not 0 < len(ids) <= limit:
                what = f"{len(ids)} tokens, beyond max_input_len {limit}" if ids else "no text"
                raise UserError(f"example {i} has {what}: {example.x[:40]!r}")
            y = getattr(example, "y", (float("nan"),) * k)
            targets = tuple(map(float, y)) if isinstance(y, Sequence | np.ndarray) else (float(y),)
            if len(targets) != k:
                raise UserError(f"example {i} has {len(targets)} numbers, but the model {k} objectives")
            if hasattr(example, "y") and not (self.hparams["special_values"] or np.isfinite(targets).all()):
                raise UserError(f"example {i} has {example.y} for a number: special_values=True makes a model of them")
            rows.append(Row(ids, targets, i, example.x))
        return rows


def _weights(path: str) -> dict[str, Tensor]:
    """The network's weights in a checkpoint of ours or of upstream's."""
    checkpoint = read_checkpoint(path)
    if "zoo" in checkpoint:
        return checkpoint["state_dict"]
    return {f"model.{name}": tensor for name, tensor in load_upstream(checkpoint).state_dict().items()}
