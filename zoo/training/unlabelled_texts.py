"""Texts without targets that a data module gives to a model for pretraining, tokenized at their first use."""

from collections.abc import Callable


class UnlabelledTexts:
    """Texts without targets.

    Args:
        name: what messages call them.
        read: returns the token ids of all texts.
        batch_size: texts per step on each rank.
    """

    def __init__(self, name: str, read: Callable[[], list[list[int]]], batch_size: int) -> None:
        self.name, self.read, self.batch_size = name, read, batch_size
