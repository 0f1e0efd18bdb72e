"""Input types of the Python API: a text, and a text with its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class ExampleInput:
    """A text whose number is to be predicted.

    Args:
        x: the text.
    """

    x: str


@dataclass
class Example(ExampleInput):
    """A text with its number, or with K numbers for a model of K objectives.

    Args:
        x: the text.
        y: the number or numbers.
    """

    y: float | Sequence[float]
