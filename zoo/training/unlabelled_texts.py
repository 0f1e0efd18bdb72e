"""Texts without targets that a data module gives to a model for pretraining, tokenized at their first use."""

from collections.abc import Callable
from typing import NamedTuple


class UnlabelledTexts(NamedTuple):
    """Texts without targets."""

    name: str  # what messages call them
    read: Callable[[], list[list[int]]]  # returns the token ids of all texts
    batch_size: int  # texts per step on each rank
