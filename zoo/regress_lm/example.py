"""What the Python API is given: texts, and texts with the numbers that belong to them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class ExampleInput:
    """A text whose number is asked for."""

    x: str


@dataclass
class Example(ExampleInput):
    """A text and its number, or its K numbers where the model has K objectives."""

    y: float | Sequence[float]
