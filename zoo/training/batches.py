"""Batches: documented NamedTuples that data modules produce and modules consume, and how rows become batches."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

IGNORED = -100  # a target that is not scored: the default ignore_index of torch's cross_entropy


class TokenBatch(NamedTuple):
    """Windows of running text for a language model. A plain (tokens, targets) pair is accepted in its place."""

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64, the token after each one; IGNORED where it is not scored
    index: Tensor | None = None  # type: ignore[assignment]  # (B,) int64, the windows' places in their split
    words: Tensor | None = None  # (B,) float32, words per row: its share of the split's words by its scored tokens


def as_token_batch(batch: Any) -> TokenBatch:
    """A `TokenBatch` from one, or from a (tokens, targets) pair.

    Raises:
        TypeError: the batch is something else.
    """
    if isinstance(batch, TokenBatch):
        return batch
    if isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        return TokenBatch(*batch)
    raise TypeError(f"a language model accepts a TokenBatch or (tokens, targets), both (B, T), not {_shape(batch)}")


def _shape(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)}"
    return f"a {type(batch).__name__}" + (f" of {len(batch)} items" if hasattr(batch, "__len__") else "")


class Row(NamedTuple):
    """One text, its tokens, its K targets (NaN where unknown) and, where asked for, the F numbers that stand in it."""

    tokens: list[int]
    targets: tuple[float, ...]
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a row
    text: str
    features: tuple[float, ...] | None = None


class TextBatch(NamedTuple):
    """What the models of texts with answers are given. Padding has no id of its own: `padding_mask` tells it."""

    tokens: Tensor  # (B, T) int64, each row's ids, then zeros
    padding_mask: Tensor | None  # (B, T) bool, True at tokens; None where no row is padded
    targets: Tensor  # (B, K) float64, numbers or the number of a class, NaN where unknown
    index: Tensor  # type: ignore[assignment]  # (B,) int64, the rows' places in their split
    texts: list[str]
    features: Tensor | None  # (B, F) float32
    numbers: Tensor | None = None  # (B, L) int64, the targets as a model's number tokens, which the model adds


def collate(rows: list[Row]) -> TextBatch:
    """The rows as one batch, no wider than the longest of them."""
    lengths = np.array([len(row.tokens) for row in rows])
    padding_mask = np.arange(lengths.max()) < lengths[:, None]  # (B, T)
    tokens = np.zeros(padding_mask.shape, dtype=np.int64)
    tokens[padding_mask] = np.concatenate([row.tokens for row in rows])
    return TextBatch(
        tokens=torch.from_numpy(tokens),
        padding_mask=None if padding_mask.all() else torch.from_numpy(padding_mask),
        targets=torch.tensor([row.targets for row in rows], dtype=torch.float64),
        index=torch.tensor([row.index for row in rows]),
        texts=[row.text for row in rows],
        features=None if rows[0].features is None else torch.tensor([row.features for row in rows]),
    )


def bucketed(order: Tensor, lengths: Tensor, step: int, generator: torch.Generator, window: int = 50) -> Tensor:
    """`order` (N,) rearranged so that each `step` rows in turn are of like length, still in random order.

    Within every window of `window` steps the rows are sorted by length and the steps are shuffled; a row stays in its
    window, so chance still decides what is seen when. Rows at the end that fill no step stay at the end.
    """
    whole = len(order) - len(order) % step
    parts = []
    for rows in order[:whole].split(window * step):
        steps = rows[lengths[rows].argsort(stable=True)].view(-1, step)  # (steps, step)
        parts.append(steps[torch.randperm(len(steps), generator=generator)].flatten())
    return torch.cat([*parts, order[whole:]])
