"""Rows: texts with targets, places and groups, divided into splits; TextRows: the dataset of their tokens."""

import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from zoo.training.batches import Row


class Rows(NamedTuple):
    """N texts with K targets (N, K) float64 (NaN where unknown), the place of each row, and its group.

    `positions` (N,) are the rows' positions in the input, which has rows between them that were left out; None after a
    selection of rows.
    """

    texts: list[str]
    targets: np.ndarray
    places: Sequence[str]
    groups: Sequence[str]
    positions: np.ndarray | None = None

    def select(self, indices: np.ndarray) -> "Rows":
        """The rows of the given indices."""
        texts, places, groups = ([column[i] for i in indices] for column in (self.texts, self.places, self.groups))
        return Rows(texts, self.targets[indices], places, groups)

    def split(
        self, fractions: dict[str, float], generator: torch.Generator, is_stratified: bool = False
    ) -> dict[str, "Rows"]:
        """Random parts of the given fractions, and all other rows as "train". Rows of one group stay together.

        Each part keeps the order of its rows.

        Args:
            fractions: share of the rows of each part, by its name.
            generator: generator of the random order.
            is_stratified: give each part the same share of the groups whose first row has the same targets.
        """
        # Put the groups into random order, with their sizes.
        groups, first_row, group_of_row = np.unique(self.groups, return_index=True, return_inverse=True)
        order = torch.randperm(len(groups), device="cpu", generator=generator).numpy()
        sizes = np.bincount(group_of_row, minlength=len(groups))[order]
        if is_stratified:
            by_class = _interleaved(self.targets[first_row][order], sizes)
            order, sizes = order[by_class], sizes[by_class]
        # For each group, the fraction of all rows in the groups drawn before it.
        before = np.empty(len(groups))
        before[order] = (sizes.cumsum() - sizes) / max(len(group_of_row), 1)
        # A row belongs to the part in which its group's fraction falls; those beyond all parts are for training.
        ends = np.cumsum(list(fractions.values()))
        part = np.searchsorted(ends, before[group_of_row], side="right")  # (N,)
        return {name: self.select(np.flatnonzero(part == i)) for i, name in enumerate([*fractions, "train"])}


def _interleaved(targets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(G,) an order of groups in which each class is spread evenly, so that every part has a similar share of it.

    Args:
        targets: (G, K) of each group.
        sizes: (G,) rows of each group.
    """
    _, class_of_group = np.unique(targets, axis=0, return_inverse=True)
    place = np.empty(len(sizes))  # the fraction of its class at a group's middle: that of a class of one group is 0.5
    for number in range(class_of_group.max(initial=-1) + 1):
        same = np.flatnonzero(class_of_group.reshape(-1) == number)
        place[same] = (sizes[same].cumsum() - sizes[same] / 2) / sizes[same].sum()
    return np.argsort(place, kind="stable")


class TextRows(Dataset):
    """Dataset of `zoo.training.batches.Row`: texts, their token ids, targets (N, K) and features (N, F) or None.

    The ids of all texts are stored in one array, which loader processes share; they would copy lists.

    Args:
        texts: (N,) the texts.
        ids: (N,) their token ids.
        targets: (N, K) float64.
        features: (N, F) float32, or None.
        n_given: number of rows, the first ones, that come from the data; the others are changed copies of them or
            synthetic, and warnings about the data do not count them. Default: all.
        positions: (N,) the `index` of each row. Default: its place in the dataset.
    """

    def __init__(
        self,
        texts: list[str],
        ids: list[list[int]],
        targets: np.ndarray,
        features: np.ndarray | None = None,
        n_given: int | None = None,
        positions: np.ndarray | None = None,
    ) -> None:
        self.texts, self.targets, self.features = texts, targets, features
        self.n_given = len(texts) if n_given is None else n_given
        self.positions = np.arange(len(texts)) if positions is None else positions
        self._starts = np.cumsum([0, *map(len, ids)])  # (N + 1,)
        self._tokens = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=self._starts[-1])

    @property
    def lengths(self) -> np.ndarray:
        """(N,) number of tokens of each text."""
        return np.diff(self._starts)

    @property
    def digest(self) -> str:
        """A digest of the token ids, the targets and the features."""
        digest = hashlib.blake2b(digest_size=8)
        for array in (self._starts, self._tokens, self.targets, self.features):
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> Row:
        tokens = self._tokens[self._starts[index] : self._starts[index + 1]].tolist()
        features = None if self.features is None else tuple(self.features[index].tolist())
        position = int(self.positions[index])
        return Row(tokens, tuple(self.targets[index].tolist()), position, self.texts[index], features)
