"""Decoders: a language model prepared to generate for a fixed number of rows, and helpers to write one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import UserError, check_choice
from zoo.generation.options import as_ids
from zoo.training.protocols import Decoder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}


def make_decoder(
    network: Any, batch_size: int, max_len: int, precision: str = "fp32", compile: bool = False
) -> Decoder:
    """The network's own decoder if it has a method `decoder`, otherwise a `FullContextDecoder`.

    Args:
        network: a `LanguageModelNetwork`.
        batch_size: number of rows.
        max_len: number of columns at most, prompt included.
        precision: type of the weights while decoding, "fp32", "bf16" or, for a Llama, "int8".
        compile: compile the decoding step.

    Raises:
        UserError: `precision` is unknown; or the network lacks a method `decoder`, and `precision` or `compile` is not
            the default.
    """
    dtype_of(precision)  # checks it
    if hasattr(network, "decoder"):
        return network.decoder(batch_size, max_len, precision, compile)
    if precision != "fp32" or compile:
        raise UserError(
            f"{type(network).__name__} generates in fp32 and without compilation only: drop --precision and --compile"
        )
    return FullContextDecoder(network)


class FullContextDecoder:
    """A `Decoder` for any language model, without a cache: evaluates the whole text of each row for every token.

    Args:
        network: a `LanguageModelNetwork`; it need not know about padding.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def prefill(self, tokens: Tensor, left_padding: Tensor | None = None) -> Tensor:
        """Logits (B, V) after prompts (B, T), of which the first `left_padding` (B,) columns are padding."""
        self.text, self.left_padding = tokens, left_padding
        return self._logits()

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token in each row, tokens (B,)."""
        self.text = torch.cat([self.text, tokens[:, None]], 1)
        return self._logits()

    @torch.no_grad()
    def _logits(self) -> Tensor:
        with evaluating(self.network):
            if self.left_padding is None:
                return self.network(self.text)[0][:, -1].float()  # (B, V)
            # Rows of different lengths, one by one and without their padding.
            rows = [row[padding:] for row, padding in zip(self.text, self.left_padding.tolist(), strict=True)]
            return torch.cat([self.network(row[None])[0][:, -1] for row in rows]).float()  # (B, V)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A context in which the model is in evaluation mode; afterwards each of its modules has its previous mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of a decoder's `precision`.

    Raises:
        UserError: it is none of `DTYPES`.
    """
    check_choice("precision", precision, tuple(DTYPES))
    return DTYPES[precision]


def left_pad(prompts: Sequence[Sequence[int]], pad: int = 0) -> tuple[Tensor, Tensor]:
    """Lists of ids as tokens (B, T), padded on the left with `pad`, and their lengths (B,)."""
    prompts = [as_ids("prompts", prompt) for prompt in prompts]
    width = max(map(len, prompts), default=0)
    tokens = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device="cpu")
    return tokens.long(), torch.tensor([len(prompt) for prompt in prompts], device="cpu")
