"""Decoders: a language model prepared to generate for a fixed number of rows, and helpers that build them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.training.protocols import Decoder

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_decoder(network: Any, precision: str = "fp32", compile: bool = False) -> Callable[[int, int], Decoder]:
    """A function (batch_size, max_len) -> `Decoder`: the network's own, with its cache, or a `FullContextDecoder`.

    Raises:
        UserError: the network has no decoder of its own, and precision or compile ask for one.
    """
    if hasattr(network, "decoder"):
        return lambda batch_size, max_len: network.decoder(batch_size, max_len, precision, compile)
    if precision != "fp32" or compile:
        raise UserError(f"{type(network).__name__} decodes eagerly in fp32: drop --precision and --compile")
    return lambda batch_size, max_len: FullContextDecoder(network)


class FullContextDecoder:
    """A `Decoder` for any language model: evaluates the whole context of each row for every token, without a cache."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def prefill(self, tokens: Tensor, left_padding: Tensor | None = None) -> Tensor:
        """Logits (B, V) after prompts (B, T), of which the first `left_padding` (B,) columns are padding."""
        padding = [0] * len(tokens) if left_padding is None else left_padding.tolist()
        self.rows = [row[skip:] for row, skip in zip(tokens, padding, strict=True)]
        return self._logits()

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token in each row, tokens (B,)."""
        self.rows = [torch.cat([row, token[None]]) for row, token in zip(self.rows, tokens, strict=True)]
        return self._logits()

    def _logits(self) -> Tensor:
        # Row by row: rows may differ in length, and a network need not know about padding.
        with evaluating(self.network):
            return torch.cat([self.network(row[None])[0][:, -1] for row in self.rows]).float()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards each of its modules is in the mode it was in."""
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
        UserError: it is neither "fp32" nor "bf16".
    """
    if precision not in DTYPES:
        raise UserError(f"precision must be one of {', '.join(DTYPES)}, not {precision!r}")
    return DTYPES[precision]


def left_pad(prompts: Sequence[Sequence[int]], pad: int = 0) -> tuple[Tensor, Tensor]:
    """Lists of ids as tokens (B, T), padded on the left with `pad`, and their lengths (B,)."""
    width = max(map(len, prompts), default=0)
    tokens = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    return tokens.long(), torch.tensor([len(prompt) for prompt in prompts])
