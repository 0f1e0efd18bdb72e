"""Llama in Lightning: LlamaLM trains it as a language model."""

from dataclasses import asdict, dataclass
from typing import Any

from zoo.llama.checkpoints.files import new_or_loaded
from zoo.llama.model import LlamaConfig
from zoo.optim import OptimizerConfig
from zoo.tokenizers import Tokenizer
from zoo.training.language_model import LanguageModel, required_vocab_size
from zoo.training.settings import part


@dataclass
class LlamaSettings(OptimizerConfig, LlamaConfig):
    """All settings of a Llama and its training."""


class LlamaLM(LanguageModel):
    """Llama from scratch as a language model: RoPE, RMSNorm, grouped-query attention, SwiGLU, its own AdamW.

    Args:
        vocab_size: number of token ids; on the command line that of the data's tokenizer.
        weights: file or folder of pretrained weights to start from: a llama2.c `.bin` or `.pt`, a Hugging Face folder or
            a checkpoint of the zoo. Its architecture replaces the settings here, except dropout and
            gradient_checkpointing. Default: random weights.
        tokenizer: the tokenizer of the data, stored in checkpoints; on the command line the data's.
        compile: train through `torch.compile`.
        **settings: the fields of `LlamaConfig` and `OptimizerConfig`.
    """

    def __init__(
        self,
        vocab_size: int | None = None,
        weights: str | None = None,
        tokenizer: Tokenizer | None = None,
        compile: bool = False,
        **settings: Any,
    ) -> None:
        size = vocab_size if weights else required_vocab_size(vocab_size, tokenizer, "LlamaLM")
        config = LlamaSettings(vocab_size=size or LlamaConfig.vocab_size, **settings)
        network = new_or_loaded(part(config, LlamaConfig), weights, size)
        super().__init__(network, config, tokenizer, compile)
        self.save_hyperparameters(ignore=["tokenizer"])
        if weights:  # a checkpoint of this module must not need the file it started from
            self.hparams.update(asdict(network.config) | {"weights": None})
