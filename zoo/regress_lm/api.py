"""Python API of RegressLM: train on lists of examples, sample numbers, evaluate probabilities, save and load.

regress_lm = RegressLM.from_scratch(max_input_len=2048)
regress_lm.fine_tune([Example(x="hello", y=0.3), Example(x="world", y=-0.3)])
samples1, samples2 = regress_lm.sample([ExampleInput(x="hi"), ExampleInput(x="bye")], num_samples=128)
"""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import lightning
import numpy as np
import torch
from torch import Tensor

from zoo.console.argument_names import argument_names
from zoo.errors import UserError, check_counts
from zoo.files.checkpoints import read_checkpoint, write_checkpoint
from zoo.generation.options import check_sampling
from zoo.registry import registered_name
from zoo.regress_lm import decoding, fine_tuning
from zoo.regress_lm.denoising import DenoisingConfig
from zoo.regress_lm.estimates import QUANTILES
from zoo.regress_lm.example import Example, ExampleInput, as_examples, counted_texts
from zoo.regress_lm.from_data import data_settings, train_on_data
from zoo.regress_lm.initial_weights import SIZES
from zoo.regress_lm.module import RegressLMModule
from zoo.regress_lm.word_transfer import add_words
from zoo.tokenizers import Tokenizer, from_state, load_tokenizer
from zoo.tokenizers.encoder_tokenizer import PREFIX
from zoo.tokenizers.numerals import rounded
from zoo.tokenizers.unknown_words import unknown_words
from zoo.training.batches import Row, TextBatch, collate
from zoo.training.random_streams import derive
from zoo.weights import find_weights

DEFAULT_WEIGHTS = "zoo:regress-lm"


class RegressLM(RegressLMModule):
    """Text in, distribution over numbers out: an encoder reads any text, a decoder generates the number's tokens.

    The model of Akhauri et al. 2025, https://arxiv.org/abs/2506.21718. A `RegressLMModule`, whose arguments it takes,
    with a Python API for lists of examples.
    """

    stored_data_settings: dict[str, Any] | None = None
    """Settings of the `TextRegression` of the training, for `save`: they say how a table's rows become texts."""
    is_adapted = True  # to the user's data; False after `from_default`

    # ---- create, save and load

    @classmethod
    def from_scratch(
        cls, max_input_len: int = 2048, *, tokenizer: str | Tokenizer | None = None, seed: int = 0, **settings: Any
    ) -> Self:
        """A new model with random weights, on the GPU if there is one.

        Args:
            max_input_len: longest text in tokens. Short texts cost no more with a larger value.
            tokenizer: tokenizer of the texts: a `Tokenizer`, or a name or path for `load_tokenizer`. Default: that of
                the pretrained `encoder` if there is one, else "bytes".
            seed: seed of the initial weights.
            **settings: the other arguments of `RegressLM`.

        Raises:
            TypeError: an argument does not exist.
            UserError: an argument is out of range or of another type; the message names it.
        """
        if tokenizer is None:
            encoder = settings.get("encoder")
            tokenizer = f"{PREFIX}{encoder}" if encoder else "bytes"
        if not isinstance(tokenizer, str | Tokenizer):
            raise UserError(f"tokenizer must be a Tokenizer, a name or a path, not a {type(tokenizer).__name__}")
        check_sampling(seed=seed)
        text_tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        with torch.random.fork_rng():
            torch.manual_seed(derive(seed, "weights"))
            model = cls(tokenizer=text_tokenizer, max_input_len=max_input_len, **settings)
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    @classmethod
    def from_default(cls, max_input_len: int = 1024, *, seed: int = 0, **settings: Any) -> Self:
        """A model pretrained on random tables, to be fine-tuned on rows of a table; on the GPU if there is one.

        Texts are `name: value, name: value`, as `zoo fit` makes them of a table's rows, with rounded numbers. Its
        tokenizer has a token for each rounded number; `fine_tune` adds the words that occur in several examples. Before
        fine-tuning, predictions mean nothing; the first one warns.

        Args:
            max_input_len: longest text in tokens.
            seed: seed of the embeddings of words that are added.
            **settings: the other arguments of `RegressLM`, except its sizes.

        Raises:
            UserError: as `from_scratch`; or a setting contradicts the pretrained weights, or their file is missing.
        """
        checkpoint = read_checkpoint(find_weights(DEFAULT_WEIGHTS), required=("tokenizer", "hyper_parameters"))
        stored = {
            name: checkpoint["hyper_parameters"][name]
            for name in (*SIZES, "number_digits", "round_digits", "power_tokens")
        }
        if "tokenizer" in settings:
            raise UserError(f"from_default has the tokenizer of {DEFAULT_WEIGHTS}: drop tokenizer, or use from_scratch")
        changed: dict[str, Any] = {"weights": DEFAULT_WEIGHTS} | stored | settings
        model = cls.from_scratch(max_input_len, tokenizer=from_state(checkpoint["tokenizer"]), seed=seed, **changed)
        model.is_adapted = False
        return model

    @classmethod
    def from_data(
        cls, data: Any, *, seed: int = 0, max_steps: int | None = None, progress: bool = True, **settings: Any
    ) -> Self:
        """A model trained on a table or on texts, with the settings that `zoo fit --config regress_lm` chooses.

        Args:
            data: a `zoo.datamodules.TextRegression` of a file or a folder, for example
                `TextRegression("table.csv", target_columns="y")`. Arguments that are given to it are kept.
            seed: seed of the initial weights, of the order of rows and of dropout.
            max_steps: optimizer steps, at least 1. Default: as many as the rules choose, a few minutes on two cores.
            progress: show a progress line.
            **settings: arguments of `RegressLM`, which are then not chosen.

        Returns:
            The trained and calibrated model.

        Raises:
            UserError: the data cannot be read, an argument is out of range, or training diverges.
        """
        check_sampling(seed=seed)
        with argument_names():
            model, used = train_on_data(cls, data, seed, max_steps, progress, settings)
        if registered_name(used) == "TextRegression":
            model.stored_data_settings = data_settings(used.hparams)
        return model

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The model in a checkpoint of `save` or `zoo fit`, on the GPU if there is one. UserError for other files.

        Args:
            path: a file, or weights by name such as "zoo:regress-lm".
        """
        model = cls.load_from_checkpoint(path, map_location="cpu", weights_only=True)
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def save(self, path: str | Path) -> None:
        """Write a checkpoint for `load`, `zoo test`, `zoo predict` and `zoo fit --model.weights`.

        A model of `from_data`, or of a checkpoint with settings of its data, stores these settings: columns, row_format
        and so on.

        Raises:
            UserError: the path is a folder, or its folder does not exist.
        """
        assert self.tokenizer is not None
        if Path(path).is_dir() or not Path(path).parent.is_dir():
            raise UserError(f"{path} cannot be written: give the path of a file in a folder that exists")
        k = self.n_objectives
        # Rows to predict need no target columns, but their number must match the model.
        unknown = {"target_columns": ",".join(f"target{i}" for i in range(1, k + 1)) if k > 1 else None}
        data = (self.stored_data_settings or unknown) | {"max_input_len": self.model.config.max_input_len}
        data |= {name: self.hparams[name] for name in ("round_digits", "power_tokens")}
        checkpoint = {
            "state_dict": self.state_dict(),
            "hyper_parameters": dict(self.hparams),
            "datamodule_hyper_parameters": data,
            "TextRegression": {"class": "TextRegression", "tokenizer": self.tokenizer.fingerprint},
            "pytorch-lightning_version": lightning.__version__,
        }
        self.on_save_checkpoint(checkpoint)
        write_checkpoint(checkpoint, path)

    def on_train_start(self) -> None:
        super().on_train_start()
        self.is_adapted = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if "TextRegression" in checkpoint and (stored := checkpoint.get("datamodule_hyper_parameters")):
            self.stored_data_settings = data_settings(stored)

    # ---- train

    def pretrain_encoder(
        self,
        texts: Iterable[str],
        steps: int = 1000,
        *,
        batch_size: int = 64,
        corrupted_share: float = 0.15,
        mean_span: float = 3.0,
        seed: int = 0,
        progress: bool = True,
    ) -> list[float]:
        """Train the encoder on texts without numbers by span denoising, before `fine_tune`.

        The optimizer is the model's own (`optimizer`, `lr` and so on), with a warm-up of 5% of the steps.

        Args:
            texts: at least one of at least 2 tokens; those beyond max_input_len tokens are divided.
            steps: optimizer steps, at least 1.
            batch_size: texts per step, at least 1.
            corrupted_share: share of a text's tokens that are corrupted, between 0 and 1.
            mean_span: mean number of tokens of a corrupted span, at least 1.
            seed: seed of the order, the corruption, and the weights of the decoder that is used here only.
            progress: show a progress line.

        Returns:
            The loss of each step, in nats per token of the spans and their sentinels.

        Raises:
            UserError: a text is not a str, no text is usable, an option is out of range, training diverges, or the
                model's encoder is a pretrained one.
        """
        assert self.tokenizer is not None
        config = DenoisingConfig(steps, batch_size, corrupted_share, mean_span, seed)
        rounded_texts = self.rounded_texts([e.x for e in as_examples("texts", texts)])
        return self.pretrain_on_tokens(self.tokenizer.encode_batch(rounded_texts), config, progress)

    def fine_tune(
        self,
        examples: Iterable[Example],
        validation_examples: Iterable[Example] | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> list[float]:
        """Train on `examples`, keeping the weights with the lowest validation loss.

        Args:
            examples: texts and their numbers; an example may have fewer than K of them, of which the others are not
                scored.
            validation_examples: determine the best weights. Default: a tenth of the examples.
            seed: seed of the order, of the held-out part and of dropout. Default: 0.
            **options: the fields of `zoo.regress_lm.fine_tuning.FineTuning`.

        Returns:
            The validation loss (nats per number token) after each epoch.

        Raises:
            UserError: `examples` is empty, one of them cannot be learned, an option is out of range, or training
                diverges.
        """
        given, held_out = as_examples("examples", examples, need_numbers=True), None
        if validation_examples is not None:
            held_out = as_examples("validation_examples", validation_examples, need_numbers=True)
        # All checks come before the words of the examples are added.
        settings = fine_tuning.new_settings(options)
        fine_tuning.check_examples(self, given, held_out, seed, settings)
        add_words(self, self.rounded_texts([example.x for example in given]), seed or 0)
        validation_rows = None if held_out is None else self.rows(held_out)
        return fine_tuning.fine_tune(self, self.rows(given), validation_rows, seed or 0, settings)

    # ---- predict

    @torch.inference_mode()
    def sample(
        self,
        inputs: Iterable[ExampleInput],
        num_samples: int,
        temperature: float = 1.0,
        *,
        top_k: int | None = None,
        seed: int | None = None,
        batch_size: int = 64,
        progress: bool = False,
    ) -> list[np.ndarray]:
        """Draw numbers for every input. The samples of an input depend on the seed and its place in the list only.

        Args:
            inputs: texts; no texts give an empty list.
            num_samples: numbers per text, at least 1.
            temperature: divides the logits; 0 takes the most likely tokens.
            top_k: draw among the k most likely tokens at each position; None for all.
            seed: seed of the draws; None draws a seed from torch's global generator.
            batch_size: texts that are processed together.
            progress: show a progress line that counts the texts.

        Returns:
            For each input float64 (num_samples,), or (num_samples, K) for K > 1 objectives.

        Raises:
            UserError: an input is not a str, is empty or too long, or an option is out of range.
        """
        check_sampling(temperature, top_k, seed=seed, num_samples=num_samples)
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        samples: list[np.ndarray] = []
        for batch in counted_texts(self.batches(as_examples("inputs", inputs), batch_size), progress):
            ids, _ = decoding.sample(
                self.model, self.vocabulary, batch.tokens, batch.padding_mask, num_samples,
                temperature=temperature, top_k=top_k, seed=seed, rows=batch.index,
            )  # fmt: skip
            samples += list(self.vocabulary.decode(ids.cpu()))  # (S, K) each
        return [s[:, 0] if self.n_objectives == 1 else s for s in samples]

    @torch.inference_mode()
    def quantiles(
        self, inputs: Iterable[ExampleInput], num_samples: int = 128, *, seed: int | None = None, batch_size: int = 64
    ) -> np.ndarray:
        """Calibrated quantiles at 5, 25, 50, 75 and 95%, as `zoo predict` writes them. 50% is the samples' median.

        Args:
            inputs: texts.
            num_samples: numbers that are drawn for each text, at least 1; below 19 the 5% quantile is the smallest.
            seed: seed of the draws; None draws a seed from torch's global generator.
            batch_size: texts that are processed together.

        Returns:
            float64 (B, 5), or (B, K, 5) for K > 1 objectives.

        Raises:
            UserError: an input is not a str, is empty or too long, or an option is out of range.
        """
        check_sampling(seed=seed, num_samples=num_samples)
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        values = [np.empty((0, self.n_objectives, len(QUANTILES)))]
        for batch in self.batches(as_examples("inputs", inputs), batch_size):
            drawn = self.draw(batch, num_samples, seed)
            values.append(self.summarize(*drawn, batch.targets)["quantiles"].cpu().numpy())
        quantiles = np.concatenate(values)
        return quantiles[:, 0] if self.n_objectives == 1 else quantiles

    @torch.inference_mode()
    def log_prob(self, examples: Iterable[Example], batch_size: int = 256) -> Tensor:
        """(B,) log-probability in nats of each example's number, rounded to its tokens, under `sample`'s distribution.

        Args:
            examples: texts and their numbers; no examples give an empty result. Of an example with fewer than K numbers
                it is their joint probability. The result is -inf for numbers that are never sampled.
            batch_size: texts that are processed together.

        Raises:
            UserError: an example cannot be scored, or batch_size is below 1.
        """
        batches = self.batches(as_examples("examples", examples, need_numbers=True), batch_size)
        empty = torch.zeros(0, dtype=torch.float64, device=self.device)
        return torch.cat([empty, *(self.log_probs(batch) for batch in batches)])

    @torch.inference_mode()
    def exact_mean(self, inputs: Iterable[ExampleInput]) -> np.ndarray:
        """(B, K) float64 exact mean of each input's distribution, summed over all numbers that have tokens.

        Raises:
            UserError: an input is not a str, is empty or too long, or there are too many such numbers.
        """
        means = [np.empty((0, self.n_objectives))]
        for batch in self.batches(as_examples("inputs", inputs), 1):
            ids, log_probs = decoding.enumerate_all(self.model, self.vocabulary, batch.tokens, batch.padding_mask)
            means.append(log_probs.double().exp().cpu().numpy() @ self.vocabulary.decode(ids.cpu()))
        return np.concatenate(means)

    def batches(self, examples: Sequence[ExampleInput], batch_size: int) -> list[TextBatch]:
        """Batches of `examples` in their order, on the model's device, with number tokens where numbers are given."""
        check_counts(batch_size=batch_size)
        if not self.is_adapted:
            warnings.warn("the weights of from_default() know random tables only: call fine_tune() first", stacklevel=3)
            self.is_adapted = True  # one warning
        rows = self.rows(examples)
        batches = [collate(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
        batches = [self.with_number_tokens(batch) for batch in batches]
        return [self.transfer_batch_to_device(batch, self.device, 0) for batch in batches]

    def rounded_texts(self, texts: list[str]) -> list[str]:
        """The texts as the tokenizer reads them: with rounded numbers, if the model was trained on such texts."""
        digits, powers = self.hparams["round_digits"], self.hparams["power_tokens"]
        return [rounded(text, digits, powers) for text in texts] if digits else texts

    def rows(self, examples: Sequence[ExampleInput]) -> list[Row]:
        """Rows of `examples`: tokens, and K targets, NaN for absent ones.

        Raises:
            UserError: a text is empty or too long, or an example has more targets than the model, or fewer with
                special_values.
        """
        assert self.tokenizer is not None
        k, limit, h = self.n_objectives, self.model.config.max_input_len, self.hparams
        texts = [e.x for e in examples]
        encoded = self.tokenizer.encode_batch(self.rounded_texts(texts))
        if sentence := unknown_words(texts, encoded, self.tokenizer, self.rounded_texts):
            warnings.warn(sentence, stacklevel=4)
        rows = []
        for i, (example, ids) in enumerate(zip(examples, encoded, strict=True)):
            if not 0 < len(ids) <= limit:
                what = f"{len(ids)} tokens, beyond max_input_len {limit}" if ids else "no text"
                raise UserError(f"example {i} has {what}: {example.x[:40]!r}")
            targets = example.numbers() if isinstance(example, Example) else (float("nan"),) * k
            if len(targets) > k or (len(targets) < k and h["special_values"]):
                remedy = "; special_values=True needs all of them" if len(targets) < k else ""
                raise UserError(f"example {i} has {len(targets)} numbers, but the model {k} objectives{remedy}")
            if isinstance(example, Example) and not (h["special_values"] or np.isfinite(targets).all()):
                raise UserError(f"example {i} has {example.y} for a number: only special_values=True allows this")
            absent = (float("nan"),) * (k - len(targets))
            rows.append(Row(ids, targets + absent, i, example.x))
        return rows
