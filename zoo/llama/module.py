"""Llama in Lightning: `LlamaLM` trains it as a language model."""

from dataclasses import asdict
from typing import Any

from zoo.language_model import LanguageModel
from zoo.llama.checkpoint import new_or_loaded
from zoo.llama.generate import stream_tokens
from zoo.llama.model import LlamaConfig


class LlamaLM(LanguageModel):
    """Llama from scratch as a language model: RoPE, RMSNorm, grouped-query attention, SwiGLU, its own AdamW.

    Args:
        weights: start from these instead of from random ones: a llama2.c `.bin` or `.pt`, a Hugging Face folder or
            a checkpoint of ours. The architecture is then the file's, but for dropout and gradient checkpointing.
        lr: peak learning rate.
        warmup_steps: optimizer steps of linear warm-up.
        min_lr_ratio: the cosine ends at this share of `lr`.
        beta1, beta2: AdamW's decay rates.
        weight_decay: decoupled decay of the matrices.
        compile: run training through `torch.compile`.
        **architecture: the fields of `LlamaConfig`. `vocab_size` follows the data's tokenizer.
    """

    stream_tokens = staticmethod(stream_tokens)

    def __init__(
        self,
        weights: str | None = None,
        lr: float = 1e-3,
        warmup_steps: int = 100,
        min_lr_ratio: float = 0.1,
        beta1: float = 0.9,
        beta2: float = 0.95,
        weight_decay: float = 0.1,
        compile: bool = False,
        **architecture: Any,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = new_or_loaded(LlamaConfig(**architecture), weights, architecture.get("vocab_size"))
        if weights:  # a checkpoint of this module must not need the file it started from
            self.hparams.update(asdict(self.model.config) | {"weights": None})
