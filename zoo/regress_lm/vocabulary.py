"""The decoder's vocabulary: ids of number tokens, and which sequences of them have a probability."""

import bisect
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from zoo.errors import UserError, check_counts
from zoo.regress_lm.automaton import ANY, Automaton, Pattern, between, positions
from zoo.regress_lm.number_tokenizers import NumberTokenizer
from zoo.regress_lm.rounding import Floats, to_digits

PAD = "<pad>"
MARGIN = 0.1
"""Share of the range of the training targets by which sampled numbers may exceed it, on each side."""


class Tables(NamedTuple):
    """The tables of a `NumberVocabulary` on one device."""

    automaton: Automaton
    temperature: Tensor  # (S,)


class NumberVocabulary:
    """A number tokenizer's tokens with upstream's ids: 0 is `<pad>`, which also starts every row; others are sorted.

    The `n_objectives` numbers of a row follow each other: `length` tokens from a vocabulary of `size`.

    Args:
        tokenizer: tokenizer of one number.
        n_objectives: numbers of a row, at least 1.
        magnitudes: for each objective the signs, exponents and first digits that have a probability, from
            `magnitudes_of`; None for all that the tokenizer has.
        temperatures: divides the logits at each of a number's tokens, (num_tokens,) greater than 0; None for 1.

    Attributes:
        automaton: the tokens that may follow each other.
        temperature: (S,) divides the logits in each state of the automaton.
    """

    def __init__(
        self,
        tokenizer: NumberTokenizer,
        n_objectives: int = 1,
        magnitudes: Sequence[Iterable[Pattern]] | None = None,
        temperatures: Sequence[float] | None = None,
    ) -> None:
        check_counts(n_objectives=n_objectives)
        self.tokenizer, self.n_objectives = tokenizer, n_objectives
        self.magnitudes, self.temperatures = magnitudes, temperatures
        self.tokens = [PAD, *sorted(tokenizer.tokens)]
        self.size = len(self.tokens)
        self.length = n_objectives * tokenizer.num_tokens
        self._ids = np.array([self.tokens.index(token) for token in tokenizer.tokens])  # by local id
        self._local = np.zeros(self.size, dtype=np.int64)
        self._local[self._ids] = np.arange(len(self._ids))
        # Tables are on the CPU, also where a model is built on the meta device, and usable outside inference mode.
        with torch.device("cpu"), torch.inference_mode(False):
            # The tokenizer's automaton over ids; after the last token of a number its state is 0 again.
            states = len(tokenizer.allowed)
            allowed = torch.zeros(states, self.size, dtype=torch.bool)
            allowed[:, self._ids] = torch.from_numpy(tokenizer.allowed)
            next_state = torch.zeros(states, self.size, dtype=torch.int64)
            next_state[:, self._ids] = torch.from_numpy(tokenizer.next_state % states)
            self._full = Automaton(allowed, next_state, positions(allowed, next_state))
            self.automaton = self._full
            if magnitudes and tokenizer.magnitude_states:
                self.automaton = self._full.restricted(magnitudes)
            by_position = torch.tensor(temperatures or [1.0] * tokenizer.num_tokens, dtype=torch.float64)
            self.temperature = by_position[self.automaton.position]
        self._tables: dict[torch.device, Tables] = {}

    @cached_property
    def unrestricted(self) -> "NumberVocabulary":
        """The same vocabulary and temperatures with all numbers of the tokenizer."""
        return NumberVocabulary(self.tokenizer, self.n_objectives, None, self.temperatures) if self.magnitudes else self

    def magnitudes_of(self, ids: Tensor) -> list[list[Pattern]]:
        """For each objective the numbers with a sign and exponent of numbers (N, length) and within their range.

        The range from the smallest to the largest of the finite N numbers is extended on each side by `MARGIN` of its
        length, or of the number's size where all are equal. "normalized" numbers are not restricted.

        Returns:
            For each objective the patterns of the numbers' tokens. Zero is a pattern of one number: it has an exponent,
            but other numbers with that exponent may be far larger than all of the N numbers.
        """
        numbers = ids.view(len(ids), self.n_objectives, -1)  # (N, K, num_tokens)
        states = self._full.states(numbers)
        is_magnitude = torch.isin(states, torch.tensor(self.tokenizer.magnitude_states, dtype=torch.int64))
        values = torch.from_numpy(self.decode(ids))  # (N, K)
        patterns = numbers.where(is_magnitude | (values == 0).unsqueeze(-1), ANY)
        result = []
        for k in range(self.n_objectives):
            is_bounded = values[:, k].isfinite() & (values[:, k] != 0)
            magnitudes = [tuple(row) for row in patterns[~is_bounded, k].unique(dim=0).tolist()]
            low, high = extended_range(values[values[:, k].isfinite(), k].numpy())
            for row in patterns[is_bounded, k].unique(dim=0).tolist():
                pattern = tuple(row)
                magnitudes += self._within(pattern, low, high) if self.tokenizer.magnitude_states else [pattern]
            result.append(magnitudes)
        return result

    def _within(self, magnitude: Pattern, low: float, high: float) -> list[Pattern]:
        """Patterns of the numbers from `low` to `high` with the sign and exponent of the pattern `magnitude`.

        At least one number must be in this range. Numbers must grow in size with their digits.
        """
        tokenizer = self.tokenizer
        digits = [i for i, token in enumerate(magnitude) if token == ANY]
        tokens = np.stack([np.flatnonzero(tokenizer.allowed[i]) for i in digits])  # (n, base) local ids
        base, largest = tokens.shape[1], tokens.shape[1] ** len(digits) - 1

        def value(mantissa: int) -> float:
            ids = self._local[np.maximum(magnitude, 0)]
            ids[digits] = np.take_along_axis(tokens, to_digits(np.array([mantissa]), base, len(digits)).T, 1)[:, 0]
            return float(tokenizer.decode(ids))

        # The first and the last mantissa in the range, by bisection.
        sign = -1 if value(largest) < 0 else 1
        if sign < 0:
            low, high = -high, -low
        mantissas = range(largest + 1)
        first = bisect.bisect_left(mantissas, low, key=lambda mantissa: sign * value(mantissa))
        last = bisect.bisect_right(mantissas, high, key=lambda mantissa: sign * value(mantissa)) - 1
        first_digits, last_digits = to_digits(np.array([first, last]), base, len(digits)).tolist()
        result = []
        for rest in between(first_digits, last_digits, base):
            pattern = list(magnitude)
            for i, row, digit in zip(digits, tokens, rest, strict=True):
                pattern[i] = ANY if digit == ANY else int(self._ids[row[digit]])
            result.append(tuple(pattern))
        return result

    def encode(self, values: ArrayLike) -> Tensor:
        """Numbers (B, K) to ids (B, length), int64; those outside the tokenizer's range are clamped."""
        ids = self._ids[self.tokenizer.encode_clamped(values)[0]]  # (B, K, num_tokens)
        if ids.shape[1] != self.n_objectives:
            raise UserError(f"a row holds {self.n_objectives} numbers here, not {ids.shape[1]}")
        return torch.from_numpy(ids.reshape(len(ids), self.length))

    def decode(self, ids: Tensor | ArrayLike) -> Floats:
        """Ids (..., length) that the grammar allows to numbers (..., K)."""
        array = np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids)
        return self.tokenizer.decode(self._local[array].reshape(*array.shape[:-1], self.n_objectives, -1))

    def is_absent(self, ids: Tensor) -> Tensor:
        """(B, L) bool: the tokens of ids (B, L) that belong to an absent number, all of whose tokens are 0."""
        numbers = ids.unflatten(1, (self.n_objectives, -1))  # (B, K, num_tokens)
        return (numbers == 0).all(2, keepdim=True).expand_as(numbers).flatten(1)

    @cached_property
    def prefix_counts(self) -> list[int]:
        """Number of token sequences of each length from 0 to `length` that have a probability."""
        return self.automaton.prefix_counts(self.length)

    @property
    def count(self) -> int:
        """Number of complete token sequences that have a probability."""
        return self.prefix_counts[-1]

    def tables(self, device: torch.device) -> "Tables":
        """The tables on a device, copied to it once."""
        if device not in self._tables:
            with torch.inference_mode(False):
                automaton = Automaton(*(table.to(device) for table in self.automaton))
                self._tables[device] = Tables(automaton, self.temperature.to(device))
        return self._tables[device]


def extended_range(values: Floats) -> tuple[float, float]:
    """The smallest and the largest of finite values (N,), extended by `MARGIN`; (0, 0) without values."""
    if not len(values):
        return 0.0, 0.0
    low, high = float(values.min()), float(values.max())
    margin = MARGIN * high - MARGIN * low if low < high else MARGIN * abs(low)
    return max(low - margin, -sys.float_info.max), min(high + margin, sys.float_info.max)
