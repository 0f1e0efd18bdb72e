"""Text generation for any language model: greedy or sampled, for batches of prompts of different lengths, as a stream.

Top-k: Fan et al. 2018, https://arxiv.org/abs/1805.04833. Top-p (nucleus): Holtzman et al. 2020,
https://arxiv.org/abs/1904.09751. With both, top-k is applied first and top-p to the renormalized rest.
"""

import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.generation.decoders import make_decoder
from zoo.training.random_streams import stream


def generate(network: Any, tokens: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
    """Prompts (B, T) with up to max_new_tokens more tokens: (B, T + n). Options as in `stream_tokens`."""
    steps = stream_tokens(network, tokens, max_new_tokens, **options)
    return torch.cat([tokens, *(step[:, None].to(tokens) for step in steps)], 1)


@torch.inference_mode()
def stream_tokens(
    network: Any,
    tokens: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    *,
    lengths: Tensor | None = None,
    stop: Collection[int] = (),
    pad: int = 0,
    seed: int | None = None,
    slide: bool | None = None,
    precision: str = "fp32",
    compile: bool = False,
) -> Iterator[Tensor]:
    """Yield the next token of each row, (B,), at most max_new_tokens times.

    Args:
        network: a `LanguageModelNetwork`.
        tokens: prompts (B, T), at least one token each; they are moved to the network's device.
        max_new_tokens: number of tokens per row at most.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: sample among the k most likely tokens only.
        top_p: sample among the fewest most likely tokens whose total probability reaches top_p, in (0, 1].
        lengths: of the prompts (B,), where shorter ones are padded on the left (see `left_pad`). Each row continues as
            its prompt alone would, until the longest row reaches the end of the context.
        stop: ids that end a row, which then yields `pad`. The stream ends when all rows have ended.
        pad: id that an ended row yields.
        seed: of the draws, which depend on it and on the row's number only; None draws one from torch's generator.
        slide: at the end of the context continue from its last half, evaluated again; False ends the stream there.
            None: the network's attribute `slides`, by default False.
        precision: of the weights while decoding, "fp32" or "bf16".
        compile: compile the decoding step, for networks with a decoder that supports it.

    A prompt longer than the context is cut on the left, with a warning, so that the new tokens fit, but to no less than
    half the context. A stream that ends at the end of the context warns.

    Raises:
        UserError: an option is out of range, or a token id is outside the vocabulary.
    """
    context, vocab_size = network.config.max_seq_len, network.config.vocab_size
    slide = getattr(network, "slides", False) if slide is None else slide
    tokens = tokens.to(next(network.parameters()).device)
    tokens, left_padding = _prompt(tokens, lengths, max_new_tokens, context, vocab_size)
    for name, value, good in (
        ("temperature", temperature, 0 <= temperature < float("inf")),
        ("top_k", top_k, top_k is None or top_k >= 1),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1),
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 0),
    ):
        if not good:
            raise UserError(f"{name} is out of range: {value}")
    start = tokens.shape[1]
    count = max_new_tokens if slide else min(max_new_tokens, context - start + 1)  # the last token need not be read
    reader = make_decoder(network, precision, compile)(len(tokens), min(context, max(start, start + count - 1)))
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
            left_padding = None if left_padding is None else (left_padding - (context + 1 - text.shape[1])).clamp(min=0)
            logits = prefill(text, left_padding)
        else:
            logits = step(tokens) if number else prefill(text, left_padding)  # (B, V)
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
        raise UserError(f"prompts must be (batch, length) with a token at least, not {tuple(tokens.shape)}")
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise UserError(f"a token id lies outside the model's vocabulary of {vocab}: is it the model's tokenizer?")
    width = tokens.shape[1]
    left_padding = torch.zeros(len(tokens), dtype=torch.long) if lengths is None else width - torch.as_tensor(lengths)
    if left_padding.shape != tokens.shape[:1] or left_padding.min() < 0 or left_padding.max() >= width:
        raise UserError(f"lengths must be {len(tokens)} numbers from 1 to {width}")
    if width - int(left_padding.min()) > context:
        keep = max(context - max_new_tokens + 1, context // 2, 1)
        warnings.warn(
            f"a prompt of {width - int(left_padding.min())} tokens is longer than the context of {context}: only its "
            f"last {keep} count",
            stacklevel=3,
        )
        left_padding = (left_padding - (width - keep)).clamp(min=0)
        tokens = tokens[:, -keep:]
    drop = int(left_padding.min())  # columns that are padding in every row
    left_padding, tokens = left_padding - drop, tokens[:, drop:]
    return tokens, left_padding.to(tokens.device) if left_padding.any() else None
