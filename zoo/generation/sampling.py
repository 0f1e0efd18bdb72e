"""Sampling loop for any language model: greedy or sampled, for batches of prompts of different lengths, as a stream.

Top-k: Fan et al. 2018, https://arxiv.org/abs/1805.04833. Top-p (nucleus): Holtzman et al. 2020,
https://arxiv.org/abs/1904.09751. With both, top-k is applied first and top-p to the renormalized rest.
"""

import math
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from zoo.errors import Diverged, UserError, check_number
from zoo.generation.decoders import make_decoder
from zoo.generation.options import as_ids, as_lengths, as_tokens, check_sampling, scale_logits
from zoo.layers.cumulative_sum import cumulative_sum
from zoo.training.random_streams import stream

FEW = 1024  # tokens among which top-p is tried first
NAN = (
    "the model's logits are NaN, so that no token can be chosen: its weights are not finite; use another checkpoint, "
    "from before the training diverged"
)


def generate(network: Any, tokens: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
    """Prompts (B, T) with up to max_new_tokens more tokens: (B, T + n). Options as in `stream_tokens`."""
    tokens = as_tokens(tokens)
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
    stop: Collection[int] | None = None,
    pad: int = 0,
    seed: int | None = None,
    slide: bool | None = None,
    precision: str = "fp32",
    compile: bool = False,
) -> Iterator[Tensor]:
    """An iterator over the next token of each row, (B,), at most max_new_tokens times.

    Options and prompts are checked by the call itself, before the first token is requested. Ids from
    `network.config.vocab_size` on, which rows of a padded output matrix have, are never drawn.

    A prompt longer than the context is cut on the left, with a warning, so that the new tokens fit, but to no less than
    half the context; other prompts stay complete. A stream that ends at the end of the context warns.

    Args:
        network: a `LanguageModelNetwork`.
        tokens: prompts (B, T), at least one token each; they are moved to the network's device.
        max_new_tokens: number of tokens per row at most.
        temperature: divides the logits, at least 0; 0 takes the most likely token.
        top_k: sample among the k most likely tokens only, at least 1; None: no limit.
        top_p: sample among the fewest most likely tokens whose total probability reaches top_p, in (0, 1]; None: no
            limit.
        lengths: lengths of the prompts (B,), where shorter ones are padded on the left (see `left_pad`). Until the
            longest row reaches the end of the context, other rows do not change a row: with temperature 0 it continues
            as its prompt would alone, otherwise as in any batch where it has the same number. None: no padding.
        stop: ids of the vocabulary that end a row, which then yields `pad`. The stream ends when all rows have ended.
            None: the attribute `stop_tokens` of the network's config, by default none.
        pad: id that an ended row yields.
        seed: seed of the draws, which depend on it and on the row's number only; None draws one from torch's generator.
        slide: at the end of the context continue from its last half, evaluated again; False ends the stream there.
            None: the network's attribute `slides`, by default False.
        precision: type of the weights while decoding: "fp32"; "bf16"; or, for a Llama, "int8", one byte per weight. On
            a CPU bf16 and int8 are faster than fp32 only with `compile` and fewer than about 32 rows.
        compile: compile the decoding step, for networks with a decoder that supports it.

    Raises:
        UserError: an option is out of range, or a token id, also one in `stop`, is outside the vocabulary.
        Diverged: logits are NaN; raised by the iterator, on a GPU at the next time that it reads the tokens.
    """
    # Check the options and cut the prompts to the context.
    check_sampling(temperature, top_k, top_p, seed, minimum=0, max_new_tokens=max_new_tokens)
    check_number("pad", pad, "a token id", lambda id: 0 <= id < network.config.vocab_size, whole=True)
    tokens = as_tokens(tokens)
    stop = _stop_ids(network.config, stop)
    context = network.config.max_seq_len
    slide = getattr(network, "slides", False) if slide is None else slide
    tokens = tokens.to(next(network.parameters()).device)
    text, left_padding = _fit_prompts(tokens, lengths, max_new_tokens, context, network.config.vocab_size)
    batch_size, start = text.shape
    # The last new token is not read by the network, so it may be one position beyond the context.
    count = max_new_tokens if slide else min(max_new_tokens, context - start + 1)
    # The decoder's cache needs one column for each token that it reads.
    decoder = make_decoder(network, batch_size, min(context, max(start, start + count - 1)), precision, compile)
    choose = _chooser(batch_size, temperature, top_k, top_p, seed)
    vocab_size = network.config.vocab_size
    warning = None
    if count < max_new_tokens:
        warning = f"the model's context of {context} tokens is full: {count} of {max_new_tokens} tokens were generated"
    window = context if slide else None
    return _stream(decoder, choose, text, left_padding, count, warning, window, vocab_size, stop, pad)


def _chooser(
    batch_size: int, temperature: float, top_k: int | None, top_p: float | None, seed: int | None
) -> Callable[[Tensor], tuple[Tensor, Tensor | bool]]:
    """The function from logits (B, V) to the next token of each row (B,), the most likely one or a draw; and whether
    logits of any row are NaN.

    Each row draws from its own random stream, so that it does not depend on the rest of the batch.
    """
    if temperature == 0:
        return _argmax
    seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
    generators = [stream(seed, "generate", row) for row in range(batch_size)]

    def choose(logits: Tensor) -> tuple[Tensor, Tensor]:
        uniform = torch.cat([torch.rand(1, generator=g, dtype=torch.float64, device="cpu") for g in generators])  # (B,)
        return _draw(logits, uniform.to(logits.device), temperature, top_k, top_p)

    return choose


@torch.inference_mode()
def _stream(
    decoder: Any,
    choose: Callable[[Tensor], tuple[Tensor, Tensor | bool]],
    text: Tensor,
    left_padding: Tensor | None,
    count: int,
    warning: str | None,
    window: int | None,
    vocab_size: int,
    stop: Collection[int],
    pad: int,
) -> Iterator[Tensor]:
    """The steps of `stream_tokens` from prompts (B, T) that fit: `count` at most, with a warning after the last one.

    Args:
        window: tokens of a sliding context; None: the context does not slide.
    """
    prefill, step = _without_autocast(decoder.prefill, text.device), _without_autocast(decoder.step, text.device)
    # Rows end at different steps; the loop runs until all have ended.
    stop_ids, ended = set(stop), [False] * len(text)
    tokens = text[:, -1]
    any_nan: Tensor | None = None  # (), on a GPU only, where it is read together with the tokens
    for number in range(count):
        if window is not None and text.shape[1] > window:
            # Drop the first half of the context, and the padding in it.
            text = text[:, -max(window // 2, 1) :]
            if left_padding is not None:
                left_padding = (left_padding - (window + 1 - text.shape[1])).clamp(min=0)
            logits = prefill(text, left_padding)  # (B, V)
        elif number == 0:
            logits = prefill(text, left_padding)
        else:
            logits = step(tokens)
        # A padded output matrix has more rows than there are tokens.
        tokens, is_nan = choose(logits[:, :vocab_size])
        if isinstance(is_nan, Tensor) and is_nan.device.type != "cpu":
            any_nan = is_nan if any_nan is None else any_nan | is_nan
        elif is_nan:
            raise Diverged(NAN)
        # A row that has ended yields padding.
        if any(ended):
            tokens = tokens.masked_fill(torch.tensor(ended, device=tokens.device), pad)
        yield tokens
        # Only a sliding context evaluates its text again.
        if window is not None:
            text = torch.cat([text, tokens[:, None]], 1)
        # The stop token itself is yielded; the row ends after it.
        if stop_ids:
            ids = tokens.tolist() if any_nan is None else torch.cat([tokens, any_nan[None]]).tolist()
            if any_nan is not None and ids.pop():
                raise Diverged(NAN)
            ended = [was or token in stop_ids for was, token in zip(ended, ids, strict=True)]
            if all(ended):
                return
    if any_nan is not None and any_nan:
        raise Diverged(NAN)
    if warning:
        warnings.warn(warning, stacklevel=2)


def sample(
    logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution -> (B,).

    Args:
        logits: (B, V).
        uniform: numbers (B,) in [0, 1), one per row, that decide the draws.
        temperature: divides the logits; greater than 0.
        top_k: sample among the k most likely tokens only; None: no limit.
        top_p: sample among the fewest most likely tokens whose total probability reaches top_p; None: no limit.
    """
    return _draw(logits, uniform, temperature, top_k, top_p)[0]


def _draw(
    logits: Tensor, uniform: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> tuple[Tensor, Tensor]:
    """The tokens of `sample` (B,), and () whether any row has no distribution, because of NaN or infinite logits."""
    ids, cumulative, total = _cumulative(logits, temperature, top_k, top_p)
    is_nan, last = total.isnan().any(), cumulative.shape[1] - 1
    if top_p is not None:
        # Up to and including the first token that reaches top_p.
        total = cumulative.gather(1, torch.searchsorted(cumulative, top_p * total).clamp(max=last))
    # 1 - uniform is in (0, 1], so that a token of probability 0 is never drawn. Only NaN gives a larger index.
    index = torch.searchsorted(cumulative, (1 - uniform[:, None]) * total).clamp(max=last)  # (B, 1)
    return (index if ids is None else ids.gather(1, index)).squeeze(1), is_nan


def _argmax(logits: Tensor) -> tuple[Tensor, Tensor | bool]:
    """The first of the largest columns of each row (B, V) -> (B,), and whether any row has NaN, which is largest."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        # For a vocabulary of 32,000, torch's argmax takes fifteen times as long as NumPy's.
        rows = logits.numpy()
        tokens = rows.argmax(-1)
        is_nan = any(math.isnan(row[token]) for row, token in zip(rows, tokens, strict=True))
        return torch.from_numpy(tokens), is_nan
    largest, tokens = logits.max(-1)
    return tokens, largest.isnan().any()


def _cumulative(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The tokens to sample among, their cumulative probabilities and the total one: (B, k), (B, k), (B, 1).

    The ids are None for all tokens in their order; with a limit, they are sorted by probability. Probabilities are in
    fp64, so that small ones are not rounded away.
    """
    if top_k is None and top_p is not None and logits.shape[-1] > FEW and logits.device.type == "cpu":
        # On a CPU, sorting a large vocabulary takes longer than a decoding step, and few tokens nearly always reach
        # top_p: sort those, and all only if they do not.
        few, few_ids = logits.topk(FEW)
        scaled = scale_logits(torch.cat([few, logits], 1), temperature)
        cumulative = cumulative_sum((scaled[:, :FEW] - scaled[:, FEW:].logsumexp(-1, keepdim=True)).exp(), -1)
        if (cumulative[:, -1] > top_p).all():
            return few_ids, cumulative, torch.ones_like(cumulative[:, :1])
    ids = None
    if top_k is not None or top_p is not None:
        logits, ids = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))
    cumulative = cumulative_sum(scale_logits(logits, temperature).softmax(-1), -1)
    return ids, cumulative, cumulative[:, -1:]


def _stop_ids(config: Any, stop: Collection[int] | None) -> list[int]:
    """The ids that end a row. Raises UserError where one that was given is outside the vocabulary."""
    if stop is None:
        return as_ids("stop", getattr(config, "stop_tokens", None) or ())
    for id in (ids := as_ids("stop", stop)):
        check_number("each id in stop", id, f"from 0 to {config.vocab_size - 1}", lambda id: id < config.vocab_size)
    return ids


def _without_autocast(function: Any, device: torch.device) -> Any:
    """`function` with the caller's autocast turned off: a decoder's dtype is set by its `precision` alone."""
    if not torch.is_autocast_enabled(device.type):
        return function
    return torch.autocast(device.type, enabled=False)(function)


def _describe_cut(lengths: list[int], context: int, keep: int) -> str:
    """The warning about prompts that are longer than the context, of which `keep` tokens are used."""
    numbers = [str(number) for number, length in enumerate(lengths, 1) if length > context]
    name = f"a prompt of {max(lengths)} tokens is"
    if len(numbers) > 1:
        name = f"prompts {', '.join(numbers[:-1])} and {numbers[-1]}, of up to {max(lengths)} tokens, are"
    elif len(lengths) > 1:
        name = f"prompt {numbers[0]}, of {max(lengths)} tokens, is"
    their = "its" if len(numbers) == 1 else "their"
    return f"{name} longer than the context of {context}: only {their} last {keep} tokens are used"


def _fit_prompts(
    tokens: Tensor, lengths: Tensor | None, max_new_tokens: int, context: int, vocab_size: int
) -> tuple[Tensor, Tensor | None]:
    """Check prompts and cut them to the context: (prompts (B, T), their left padding (B,), or None if there is none).

    Args:
        tokens: prompts (B, T), padded on the left.
        lengths: lengths of the prompts (B,); None: no padding.
        max_new_tokens: number of tokens to generate; where a prompt must be cut, they should fit into the context.
        context: the network's longest context.
        vocab_size: number of token ids.

    Raises:
        UserError: a prompt has an unknown id, or a length that does not fit `tokens`.
    """
    # All ids are in the vocabulary.
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise UserError(
            f"a token id is outside the model's vocabulary of {vocab_size}: use the tokenizer that the model was "
            "trained with"
        )
    # A row's padding is the rest of the width.
    width = tokens.shape[1]
    left_padding = torch.zeros(len(tokens), dtype=torch.long, device="cpu")
    if lengths is not None:
        left_padding = width - as_lengths(lengths, len(tokens), width)
    # Cut long prompts on the left, so that their ends and the new tokens fit into the context: padding takes the place
    # of the rest. Shorter prompts stay as they are.
    is_long = width - left_padding > context  # (B,)
    if is_long.any():
        keep = max(context - max_new_tokens + 1, context // 2, 1)
        warnings.warn(_describe_cut((width - left_padding).tolist(), context, keep), stacklevel=3)
        left_padding = left_padding.masked_fill(is_long, width - keep)
    # Remove columns that are padding in every row.
    common = int(left_padding.min())
    left_padding, tokens = left_padding - common, tokens[:, common:]
    return tokens, left_padding.to(tokens.device) if left_padding.any() else None
