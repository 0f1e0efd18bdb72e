"""Input types of the Python API: a text, and a text with its numbers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from zoo.console.progress_display import counting
from zoo.errors import UserError
from zoo.regress_lm.number_inputs import as_numbers
from zoo.training.batches import TextBatch


@dataclass
class ExampleInput:
    """A text whose number is to be predicted.

    Args:
        x: the text.

    Raises:
        UserError: x is not a str, or contains half of a surrogate pair.
    """

    x: str

    def __post_init__(self) -> None:
        if not isinstance(self.x, str):
            raise UserError(f"x of an example must be text, not a {type(self.x).__name__}")
        if any("\ud800" <= letter <= "\udfff" for letter in self.x):  # halves of a character, which UTF-8 lacks
            raise UserError(f"x of an example must be valid Unicode text, not {self.x[:40]!r}")


@dataclass
class Example(ExampleInput):
    """A text with its number, or with at most K numbers for a model of K objectives: the first of them.

    Args:
        x: the text.
        y: the number or numbers: a number, a list, an array or a tensor (K,).

    Raises:
        UserError: as `ExampleInput`, or y is neither a number nor a list of numbers.
    """

    y: float | Sequence[float]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.numbers()

    def numbers(self) -> tuple[float, ...]:
        """The K numbers of y.

        Raises:
            UserError: y is neither a number nor a list of numbers.
        """
        numbers = as_numbers("y of an example", self.y)
        if numbers.ndim > 1 or not numbers.size:
            raise UserError(f"y of an example must be a number or a list of K numbers, not of shape {numbers.shape}")
        return tuple(numbers.ravel().tolist())


def as_examples(name: str, examples: Any, need_numbers: bool = False) -> list[ExampleInput]:
    """The examples of any iterable as a list.

    Args:
        name: name of the argument, for the message.
        examples: a list, generator, column of a table or other ordered iterable of examples; a text counts as an
            input without a number.
        need_numbers: whether every example must be an `Example`.

    Raises:
        UserError: they are something else; the message names the first wrong one.
    """
    kind = "Example" if need_numbers else "ExampleInput"
    if hasattr(examples, "columns"):  # iterating over a table gives the names of its columns
        column = "a column of texts" if not need_numbers else "pairs of its columns"
        raise UserError(f"{name} must be a list of {kind}, not a {type(examples).__name__}: give {column}")
    if isinstance(examples, str | bytes | dict | set | frozenset | ExampleInput) or not isinstance(examples, Iterable):
        raise UserError(f"{name} must be a list of {kind}, not a {type(examples).__name__}")
    checked: list[ExampleInput] = []
    for i, example in enumerate(examples):
        if isinstance(example, str) and not need_numbers:
            example = ExampleInput(example)
        if not isinstance(example, Example if need_numbers else ExampleInput):
            raise UserError(f"{name}[{i}] must be an {kind}, not a {type(example).__name__}")
        checked.append(example)
    return checked


def counted_texts(batches: list[TextBatch], progress: bool) -> Iterator[TextBatch]:
    """The batches, with a progress line on standard error that counts their texts."""
    with counting(sum(len(batch.texts) for batch in batches), "text", "sampling", progress) as add:
        for batch in batches:
            yield batch
            add(len(batch.texts))
