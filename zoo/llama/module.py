"""LlamaLM: LightningModule that trains a Llama as a language model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import nn

from zoo.llama.checkpoints import new_or_loaded
from zoo.llama.model import NETWORK_ARGUMENTS, LlamaConfig
from zoo.optim import OptimizerConfig
from zoo.tokenizers import Tokenizer
from zoo.training.fixed_arguments import field_names
from zoo.training.initial_weights import check_tokenizer
from zoo.training.language_model import LanguageModel, required_vocab_size
from zoo.training.settings import part


@dataclass
class LlamaSettings(OptimizerConfig, LlamaConfig):
    """All settings of a Llama and its training."""


class LlamaLM(LanguageModel):
    """Llama from scratch as a language model: rotary positions, RMSNorm, grouped-query attention, SwiGLU.

    Args:
        vocab_size: number of token ids; by default taken from the tokenizer or the file `weights`. The command line
            takes it from the data.
        weights: file or folder of pretrained weights to start from: a llama2.c `.bin` or `.pt`, a Hugging Face folder
            or a checkpoint of the zoo, also as zoo:NAME. Its architecture replaces the settings given here, except
            dropout and gradient_checkpointing. The default, null, starts from random weights.
        tokenizer: the tokenizer of the data, stored in checkpoints; the command line takes it from the data.
        compile: run training steps through `torch.compile`; the default, false, runs them eagerly.
        **settings: the fields of `LlamaConfig` and `OptimizerConfig`.
    """

    fixed_arguments: ClassVar[tuple[str, ...]] = (
        *LanguageModel.fixed_arguments,
        *field_names(LlamaConfig, "dropout", "gradient_checkpointing"),
    )
    network_arguments: ClassVar[tuple[str, ...]] = NETWORK_ARGUMENTS

    sharded_methods: ClassVar[tuple[str, ...] | None] = ("loss",)

    def __init__(
        self,
        vocab_size: int | None = None,
        weights: str | None = None,
        tokenizer: Tokenizer | None = None,
        compile: bool = False,
        **settings: Any,
    ) -> None:
        size_from_file = weights and vocab_size is None and tokenizer is None
        size = None if size_from_file else required_vocab_size(vocab_size, tokenizer, "LlamaLM")
        config = LlamaSettings(vocab_size=LlamaConfig.vocab_size if size is None else size, **settings)
        check_tokenizer(weights, tokenizer)
        network = new_or_loaded(part(config, LlamaConfig), weights, size)
        super().__init__(network, config, tokenizer, compile)
        self.save_hyperparameters(ignore=["tokenizer"])
        # A checkpoint of this module must not need the file `weights`, nor a tokenizer for its vocabulary size.
        self.hparams.update(asdict(network.config) | {"weights": None})

    def sharded_blocks(self) -> Sequence[nn.Module]:
        return list(self.model.layers)
