"""Llama in Lightning as a zero-shot classifier: LlamaZeroShot scores class names as continuations of a prompt."""

from dataclasses import asdict
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.llama.checkpoints import new_or_loaded
from zoo.llama.class_scores import continuation_scores, continuations, course_scores
from zoo.llama.model import NETWORK_ARGUMENTS, LlamaConfig
from zoo.llama.text_classifier import TextClassifier, required_label_names
from zoo.optim import OptimizerConfig
from zoo.tokenizers import Tokenizer
from zoo.training.batches import TextBatch
from zoo.training.initial_weights import check_tokenizer
from zoo.training.language_model import required_vocab_size


class LlamaZeroShot(TextClassifier):
    """Llama as a zero-shot text classifier: each class scores the log-probability of its name after a prompt.

    Nothing is trained: use `validate`, `test` and `predict`. The rows' tokens are those of the whole prompt, which
    contains the text. Logged for val and test: `<split>_loss`, `<split>_accuracy`, `<split>_macro_f1`.

    Args:
        label_names: names of the classes, which are scored after the prompt; the command line takes them from the data.
        weights: file or folder of pretrained weights: a llama2.c `.bin` or `.pt`, a Hugging Face folder or a checkpoint
            of the zoo, also as zoo:NAME. Its architecture replaces the settings here. Default: random weights.
        prompt_parts: the prompt before the text and after it; the command line takes them from `--data.prompt`.
        normalize: score the mean over the tokens of a name instead of their sum.
        calibrate: subtract the scores of the names after the prompt without a text.
        course_scoring: score as CMU's minllama course does: sum the log-probabilities of a name's tokens at the last
            column, padding included. The prompt must end with a space; results depend on the batch size.
        vocab_size: number of token ids; the command line sets it from the data's tokenizer.
        tokenizer: turns class names and prompts into ids; the command line takes it from the data.
        label_spellings: how files write each class, in the order of `label_names`, for predictions; the command
            line takes them from the data. Default: label_names.
        **architecture: the fields of `LlamaConfig`.
    """

    data_arguments: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "tokenizer",
        "label_names",
        "label_spellings",
        "prompt_parts",
    )
    network_arguments: ClassVar[tuple[str, ...]] = NETWORK_ARGUMENTS
    renamed_arguments: ClassVar[dict[str, str]] = {"compat": "course_scoring"}

    def __init__(
        self,
        label_names: list[str],
        weights: str | None = None,
        prompt_parts: tuple[str, str] | None = None,
        normalize: bool = False,
        calibrate: bool = False,
        course_scoring: bool = False,
        vocab_size: int | None = None,
        tokenizer: Tokenizer | None = None,
        label_spellings: list[str] | None = None,
        **architecture: Any,
    ) -> None:
        names = required_label_names(label_names)
        if course_scoring and (normalize or calibrate):
            raise UserError("course_scoring cannot be combined with normalize or calibrate: drop them")
        is_size_given = vocab_size is not None or tokenizer is not None
        size = required_vocab_size(vocab_size, tokenizer, "LlamaZeroShot") if is_size_given or not weights else None
        config = LlamaConfig(vocab_size=LlamaConfig.vocab_size if size is None else size, **architecture)
        check_tokenizer(weights, tokenizer)
        model = new_or_loaded(config, weights, size)
        super().__init__(model, names, label_spellings, OptimizerConfig(), tokenizer)
        self.save_hyperparameters(ignore=["tokenizer"])
        self.hparams["vocab_size"] = model.config.vocab_size  # it may have come from the tokenizer
        if weights:
            self.hparams.update(asdict(model.config) | {"weights": None})
        self.prompt_parts = prompt_parts
        self.normalize, self.calibrate, self.course_scoring = normalize, calibrate, course_scoring
        self._calibration: Tensor | None = None  # (1, C) scores after the prompt without a text
        self.eval()  # it is never trained: dropout stays off

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            raise UserError("LlamaZeroShot is not trained: use zoo validate, test or predict")
        _ = self.name_tokens, self.calibrate and self.prompt_tokens  # errors are reported before the run starts
        self._calibration = None  # the weights may have changed since it was computed

    @property
    def positions_after_text(self) -> int:
        return max(map(len, self.name_tokens)) - 1

    @cached_property
    def name_tokens(self) -> list[list[int]]:
        """The token ids of each class name as they follow the prompt."""
        if self.prompt_parts is None:
            raise UserError("LlamaZeroShot needs a prompt: set --data.prompt, such as '{text} This movie is'")
        if self.tokenizer is None:
            raise UserError("LlamaZeroShot needs the tokenizer of its data: pass tokenizer=")
        if not self.course_scoring:
            return continuations(self.tokenizer, self.prompt_parts[1], self.label_names)
        if not self.prompt_parts[1].endswith(" "):
            raise UserError("course_scoring needs a prompt that ends with a space: add one to --data.prompt")
        return [self.tokenizer.encode(name, bos=False) for name in self.label_names]

    @cached_property
    def prompt_tokens(self) -> list[int]:
        """The token ids of the prompt without a text, at least one."""
        _ = self.name_tokens  # a missing prompt or tokenizer is an error
        assert self.tokenizer is not None
        assert self.prompt_parts is not None
        ids = self.tokenizer.encode("".join(self.prompt_parts).strip())
        if not ids:
            raise UserError("calibrate needs a prompt with words in addition to the text: add some to --data.prompt")
        return ids

    def forward(self, batch: TextBatch | Tensor) -> Tensor:
        """Scores (B, C) of a batch of prompts, or of tokens (B, T) without padding."""
        tokens, padding_mask = (batch, None) if isinstance(batch, Tensor) else (batch.tokens, batch.padding_mask)
        if self.course_scoring:
            return course_scores(self.model, tokens, self.name_tokens)
        scores = continuation_scores(self.model, tokens, padding_mask, self.name_tokens, self.normalize)
        return scores - self._calibration_scores() if self.calibrate else scores

    def _calibration_scores(self) -> Tensor:
        """Scores (1, C) of the names after the prompt without a text, computed once."""
        if self._calibration is None:
            prompt = torch.tensor([self.prompt_tokens], device=self.device)
            self._calibration = continuation_scores(self.model, prompt, None, self.name_tokens, self.normalize)
        return self._calibration

    def training_step(self, batch: TextBatch, batch_idx: int) -> Tensor:
        """Not available. It exists so that Lightning reaches `setup`, which raises the error for the user."""
        raise NotImplementedError
