"""Batches of text with answers, numbers or a class: padded to their longest row, rows of like length together."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Row(NamedTuple):
    """One text, its tokens, its K targets (NaN where unknown) and, where asked for, the F numbers that stand in it."""

    tokens: list[int]
    targets: tuple[float, ...]
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a row
    text: str
    features: tuple[float, ...] | None = None


class TextBatch(NamedTuple):
    """What the models of texts with answers are given. Padding has no id of its own: `real` tells it."""

    tokens: Tensor  # (B, T) int64, each row's ids, then zeros
    real: Tensor | None  # (B, T) bool, True at tokens; None where no row is padded
    targets: Tensor  # (B, K) float64, numbers or the number of a class, NaN where unknown
    index: Tensor  # type: ignore[assignment]  # (B,) int64, the rows' places in their split
    texts: list[str]
    features: Tensor | None  # (B, F) float32
    numbers: Tensor | None = None  # (B, L) int64, the targets as a model's number tokens, which the model adds


def collate(rows: list[Row]) -> TextBatch:
    """The rows as one batch, no wider than the longest of them."""
    lengths = np.array([len(row.tokens) for row in rows])
    real = np.arange(lengths.max()) < lengths[:, None]  # (B, T)
    tokens = np.zeros(real.shape, dtype=np.int64)
    tokens[real] = np.concatenate([row.tokens for row in rows])
    return TextBatch(
        tokens=torch.from_numpy(tokens),
        real=None if real.all() else torch.from_numpy(real),
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
