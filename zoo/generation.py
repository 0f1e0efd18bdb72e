"""Text from any language model, token by token: greedy or sampled, in batches of prompts of any lengths, as a stream.

Top-k: Fan et al. 2018, https://arxiv.org/abs/1805.04833. Top-p (nucleus): Holtzman et al. 2020,
https://arxiv.org/abs/1904.09751. With both, top-k comes first and top-p sees what is left, renormalized.
"""

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from zoo.streams import stream


class Decoder(Protocol):
    """A model at work on a batch: it reads prompts, then a token of each row after the other."""

    def prefill(self, tokens: Tensor, shift: Tensor | None = None) -> Tensor:
        """Logits (B, V) after prompts (B, T), of which the first `shift` (B,) columns are padding."""

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token in each row, tokens (B,)."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation, and each of its parts afterwards as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def dtype_of(precision: str) -> torch.dtype:
    """The dtype that a decoder's `precision` names.

    Raises:
        ValueError: it names none.
    """
    known = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if precision not in known:
        raise ValueError(f"precision must be one of {', '.join(known)}, not {precision!r}")
    return known[precision]


def left_pad(prompts: Sequence[Sequence[int]], pad: int = 0) -> tuple[Tensor, Tensor]:
    """Lists of ids to tokens (B, T), padded on the left, and their lengths (B,), as `stream_tokens` takes them."""
    width = max(map(len, prompts), default=0)
    tokens = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    return tokens.long(), torch.tensor([len(prompt) for prompt in prompts])


def appended(tokens: Tensor, steps: Iterator[Tensor]) -> Tensor:
    """tokens (B, T) with what a stream yields, (B,) each: (B, T + n)."""
    return torch.cat([tokens, *(step[:, None].to(tokens) for step in steps)], 1)


@torch.inference_mode()
def stream_tokens(
    decoder: Callable[[int, int], Decoder],
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    *,
    context: int,
    vocab_size: int,
    lengths: Tensor | None = None,
    stop: Collection[int] = (),
    pad: int = 0,
    seed: int | None = None,
    slide: bool = False,
) -> Iterator[Tensor]:
    """Yields the next token of each row, (B,), at most max_new_tokens times.

    Args:
        decoder: makes the decoder for a number of rows and of columns.
        tokens: prompts (B, T), at least one token each, on the model's device.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: sample among the k likeliest tokens only.
        top_p: sample among the fewest likeliest tokens whose probability reaches top_p.
        context: the longest text that the model can see.
        vocab_size: of the model.
        lengths: of the prompts (B,), where shorter ones are padded on the left (see `left_pad`). Each row
            continues as its prompt alone would, until the longest comes to the context's edge.
        stop: ids that end a row; from then on it yields `pad`. When all rows have ended, so does the stream.
        seed: of the draws, which depend on it and the row's number only; None draws one from torch's generator.
        slide: at the context's edge, go on from the last half of it, read anew; else the stream ends there.

    A prompt longer than the model's context is cut to its end, with a warning: to what leaves room for the new
    tokens, but to no less than half the context. Where the stream ends at the context's edge, a warning says so.
    Wrong options raise ValueError.
    """
    tokens, shift = _prompt(tokens, lengths, max_new_tokens, context, vocab_size)
    for name, value, good in (
        ("temperature", temperature, 0 <= temperature < float("inf")),
        ("top_k", top_k, top_k is None or top_k >= 1),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1),
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 0),
    ):
        if not good:
            raise ValueError(f"{name} is out of range: {value}")
    start = tokens.shape[1]
    count = max_new_tokens if slide else min(max_new_tokens, context - start + 1)  # the last token need not be read
    reader = decoder(len(tokens), min(context, max(start, start + count - 1)))
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    draws = [stream(seed, "generate", row) for row in range(len(tokens))]
    ends = torch.tensor(sorted(stop), dtype=tokens.dtype, device=tokens.device)
    done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    # Half precision from outside would undo a decoder's own; its "precision" is the way to ask for it.
    plain = torch.autocast(tokens.device.type, enabled=False)
    prefill, step = plain(reader.prefill), reader.step
    if torch.is_autocast_enabled(tokens.device.type):
        step = plain(step)
    text = tokens  # (B, T), what has been read and is to be
    for number in range(count):
        if text.shape[1] > context:
            text = text[:, -max(context // 2, 1) :]
            shift = None if shift is None else (shift - (context + 1 - text.shape[1])).clamp(min=0)
            logits = prefill(text, shift)
        else:
            logits = step(tokens) if number else prefill(text, shift)  # (B, V)
        if temperature == 0:
            tokens = logits.argmax(-1)  # (B,)
        else:
            uniform = torch.cat([torch.rand(1, generator=draw, dtype=torch.float64) for draw in draws])
            tokens = sample(logits, uniform.to(logits.device), temperature, top_k, top_p)
        if stop:
            tokens = tokens.masked_fill(done, pad)
        yield tokens
        if slide:
            text = torch.cat([text, tokens[:, None]], 1)
        if stop:
            done |= torch.isin(tokens, ends)
            if done.all():
                return
    if count < max_new_tokens:
        warnings.warn(
            f"the model's context of {context} tokens is full: {count} of {max_new_tokens} tokens were generated",
            stacklevel=2,
        )


def sample(
    logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Draws a token a row from logits (B, V) by numbers `uniform` (B,) from [0, 1): the inverse of the
    distribution function, so that a row's draw needs one number, its own."""
    ids = None
    if top_k is not None or top_p is not None:
        logits, ids = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))  # (B, k), falling
    mass = (logits.double() / temperature).softmax(-1).cumsum(-1)  # (B, k)
    total = mass[:, -1:]
    if top_p is not None:
        total = mass.gather(1, torch.searchsorted(mass, top_p * total))  # up to the first that reaches top_p
    place = torch.searchsorted(mass, (1 - uniform[:, None]) * total)  # in (0, total], so never of probability 0
    return (place if ids is None else ids.gather(1, place)).squeeze(1)


def _prompt(
    tokens: Tensor, lengths: Tensor | None, max_new_tokens: int, context: int, vocab: int
) -> tuple[Tensor, Tensor | None]:
    """Checks prompts (B, T) and fits them to the context; returns them and their padding (B,), None if none."""
    if tokens.dim() != 2 or tokens.numel() == 0:
        raise ValueError(f"prompts must be (batch, length) with a token at least, not {tuple(tokens.shape)}")
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise ValueError(f"a token id lies outside the model's vocabulary of {vocab}: is it the model's tokenizer?")
    width = tokens.shape[1]
    shift = torch.zeros(len(tokens), dtype=torch.long) if lengths is None else width - torch.as_tensor(lengths)
    if shift.shape != tokens.shape[:1] or shift.min() < 0 or shift.max() >= width:
        raise ValueError(f"lengths must be {len(tokens)} numbers from 1 to {width}")
    if width - int(shift.min()) > context:
        keep = max(context - max_new_tokens + 1, context // 2, 1)
        warnings.warn(
            f"a prompt of {width - int(shift.min())} tokens is longer than the context of {context}: only its "
            f"last {keep} count",
            stacklevel=3,
        )
        shift = (shift - (width - keep)).clamp(min=0)
        tokens = tokens[:, -keep:]
    drop = int(shift.min())  # columns that are padding in every row
    shift, tokens = shift - drop, tokens[:, drop:]
    return tokens, shift.to(tokens.device) if shift.any() else None
