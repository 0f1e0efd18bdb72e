"""Checks of the arguments of every sampling function: options of the draws, and token ids."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError, check_counts, check_number, check_weight

LARGEST_ID = 2**63 - 1
COLDEST = 1e-100  # below this temperature a division of logits may overflow


def check_sampling(
    temperature: Any = 1.0, top_k: Any = None, top_p: Any = None, seed: Any = None, minimum: int = 1, **counts: Any
) -> None:
    """Check the options of random draws.

    Args:
        temperature: divides the logits: a finite number of at least 0.
        top_k: number of most likely tokens to sample among: an integer of at least 1, or None.
        top_p: total probability of the tokens to sample among, in (0, 1], or None.
        seed: seed of the draws: an integer, or None.
        minimum: minimum of the counts.
        **counts: numbers of samples or tokens by name: integers.

    Raises:
        UserError: an option is out of range or of another type; the message names it.
    """
    check_weight("temperature", temperature)
    if top_k is not None:
        check_number("top_k", top_k, "at least 1, or null for all tokens", lambda k: k >= 1, whole=True)
    if top_p is not None:
        check_number("top_p", top_p, "in (0, 1], or null for all tokens", lambda p: 0 < p <= 1)
    if seed is not None:
        check_number("seed", seed, "or null for a random one", lambda seed: True, whole=True)
    check_counts(minimum, **counts)


def scale_logits(logits: Tensor, temperature: float) -> Tensor:
    """Logits (..., V) in fp64 divided by a temperature above 0, without an overflow of the largest one."""
    logits = logits.double()
    if temperature < COLDEST:
        logits = logits - logits.amax(-1, keepdim=True)
    return logits / float(temperature)


def as_ids(name: str, ids: Any) -> list[int]:
    """Token ids as a list, from one id or any iterable of integers.

    Args:
        name: name of the argument, for the message.
        ids: an integer, or an iterable of integers such as a list, a set, an array or a tensor (n,).

    Raises:
        UserError: they are something else, or an id is negative.
    """
    values = ids.tolist() if isinstance(ids, Tensor | np.ndarray) else ids
    values = list(values) if isinstance(values, Iterable) and not isinstance(values, str | bytes | dict) else [values]
    for value in values:
        check_number(f"each id in {name}", value, "from 0", lambda id: 0 <= id <= LARGEST_ID, whole=True)
    return [int(value) for value in values]


def as_tokens(tokens: Any) -> Tensor:
    """Prompts (B, T) as a tensor of int64, from a tensor, an array or nested lists of integers.

    Raises:
        UserError: they are not rows of equal length, of at least one integer each.
    """
    if not isinstance(tokens, Tensor):
        try:
            array = np.asarray(tokens)
        except ValueError:  # rows of different lengths
            array = np.empty(0, dtype=object)
        if array.dtype.kind not in "iu":
            raise UserError(
                "prompts must be token ids, a tensor of integers (batch, length), where rows of different lengths are "
                f"padded by zoo.generation.decoders.left_pad, not a {type(tokens).__name__}"
            )
        tokens = torch.from_numpy(array.astype(np.int64))
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise UserError(f"prompts must be token ids, a tensor of integers (batch, length), not of {tokens.dtype}")
    if tokens.dim() != 2 or tokens.numel() == 0:
        raise UserError(f"prompts must be (batch, length) with a token at least, not {tuple(tokens.shape)}")
    return tokens.long()


def as_lengths(lengths: Any, rows: int, width: int) -> Tensor:
    """Lengths of prompts (B,) as int64.

    Raises:
        UserError: there is not one integer from 1 to `width` for each of `rows` prompts.
    """
    values = as_ids("lengths", lengths)
    if len(values) != rows or not all(1 <= value <= width for value in values):
        raise UserError(f"lengths must be {rows} numbers from 1 to {width}")
    return torch.tensor(values, device="cpu")
