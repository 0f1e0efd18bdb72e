"""The Trainer with one verb more: generate."""

import sys
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from zoo.memory import load
from zoo.tokenizers import stream_decode


class ZooTrainer(Trainer):
    """Lightning's Trainer, and `generate` for language models."""

    def generate(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        ckpt_path: str | None = None,
        prompt: str | list[str] = "",
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        precision: Literal["fp32", "bf16"] = "fp32",
        compile: bool = False,
    ) -> list[str]:
        """Let a language model continue one prompt, streamed to the terminal, or several at once.

        Args:
            model: a language model of the zoo.
            datamodule: data whose tokenizer the model speaks.
            ckpt_path: the weights.
            prompt: the text to continue, or a list of texts; empty starts a text.
            max_new_tokens: how many tokens to add at most.
            temperature: 0 for the likeliest text, 1 for the model's own distribution.
            top_k: draw from the k likeliest tokens only.
            top_p: draw from the fewest tokens that hold this much probability.
            seed: of the draws; the same seed gives the same text.
            precision: of the weights while decoding.
            compile: compile the decoding step first; pays for long texts.
        """
        if ckpt_path:
            model.load_state_dict(load(ckpt_path)["state_dict"])
        tokenizer: Any = datamodule.tokenizer
        device = self.strategy.root_device
        network = model.model.to(device).eval()
        prompts = [prompt] if isinstance(prompt, str) else prompt
        ids = [tokenizer.encode(text) for text in prompts]
        return []
