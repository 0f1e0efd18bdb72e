"""The finite automaton of number tokens: which tokens may follow each other, over all numbers of a row."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.errors import UserError

ANY = -1
"""Entry of a pattern that matches every token."""

Pattern = tuple[int, ...]
"""A set of numbers: a token, or ANY, for each of a number's tokens."""


class Automaton(NamedTuple):
    """States from 0, the state at the start of a row. After the last token of the last number the state is 0 again."""

    allowed: Tensor  # (S, V) bool, the tokens that may come in each state
    next_state: Tensor  # (S, V) int64, the state after each token
    position: Tensor  # (S,) int64, the place of a state's token in its number

    def restricted(self, patterns: Sequence[Iterable[Pattern]]) -> "Automaton":
        """The automaton, of one number, for K numbers in sequence, each of which matches one of its patterns.

        Args:
            patterns: for each of the K numbers at least one pattern, as long as a number.

        Raises:
            UserError: a pattern has a token that the automaton does not allow.
        """
        allowed, next_states, position = self.allowed.tolist(), self.next_state.tolist(), self.position.tolist()
        last = max(position)
        # A new state is (number, state, what the number may still match): a subset construction over the patterns.
        first = [_simplified(tuple(pattern) for pattern in each) for each in patterns]
        start = (0, 0, first[0])
        states = {start: 0}
        queue = [start]
        transitions: list[tuple[int, int, int]] = []
        for source in queue:  # the queue grows while it is read
            number, state, rest = source
            for token in [token for token, is_allowed in enumerate(allowed[state]) if is_allowed]:
                matching = _simplified(pattern[1:] for pattern in rest if pattern[0] in (ANY, token))
                if not matching:
                    continue
                following = (number + 1) % len(first)
                is_last = position[state] == last
                target = (following, 0, first[following]) if is_last else (number, next_states[state][token], matching)
                if target not in states:
                    states[target] = len(states)
                    queue.append(target)
                transitions.append((states[source], token, states[target]))
        # Tables of the new states.
        new_allowed = torch.zeros(len(states), self.allowed.shape[1], dtype=torch.bool)
        new_next = torch.zeros(len(states), self.allowed.shape[1], dtype=torch.int64)
        for before, token, after in transitions:
            new_allowed[before, token], new_next[before, token] = True, after
        if not new_allowed.any(1).all():
            raise UserError("the signs and exponents do not fit the number format: give another checkpoint")
        return Automaton(new_allowed, new_next, torch.tensor([position[state] for _, state, _ in states]))

    def states(self, ids: Tensor) -> Tensor:
        """(..., L) the state in which each token of ids (..., L) comes."""
        next_state = self.next_state.to(ids.device)
        state, states = torch.zeros_like(ids[..., 0]), []
        for token in ids.unbind(-1):
            states.append(state)
            state = next_state[state, token]
        return torch.stack(states, -1)

    def prefix_counts(self, length: int) -> list[int]:
        """Number of token sequences of each length from 0 to `length` that the automaton allows."""
        # The number of prefixes that lead to each state, position by position.
        prefixes = {0: 1}
        counts = [1]
        for _ in range(length):
            extended: dict[int, int] = {}
            for state, count in prefixes.items():
                for token in self.allowed[state].nonzero().flatten().tolist():
                    after = int(self.next_state[state, token])
                    extended[after] = extended.get(after, 0) + count
            prefixes = extended
            counts.append(sum(prefixes.values()))
        return counts


def positions(allowed: Tensor, next_state: Tensor) -> Tensor:
    """(S,) the number of tokens before each state, for an automaton whose paths to a state are equally long."""
    position = torch.zeros(len(allowed), dtype=torch.int64)
    queue = [0]
    for state in queue:  # the queue grows while it is read
        for after in next_state[state, allowed[state]].unique().tolist():
            if after != 0 and position[after] == 0:
                position[after] = position[state] + 1
                queue.append(after)
    return position


def between(low: Sequence[int], high: Sequence[int], base: int) -> list[Pattern]:
    """Patterns of digits from 0 to base - 1 that together match the digits (n,) from `low` to `high`, and no others."""
    n = len(low)
    if all(digit == 0 for digit in low) and all(digit == base - 1 for digit in high):
        return [(ANY,) * n]
    # The first digits agree: they are followed by what is between the remaining ones.
    first, last = low[0], high[0]
    if first == last:
        return [(first, *rest) for rest in between(low[1:], high[1:], base)]
    # The first digit is the lower bound's, one between the two bounds' or the upper bound's.
    return [
        *((first, *rest) for rest in between(low[1:], [base - 1] * (n - 1), base)),
        *((digit, *(ANY,) * (n - 1)) for digit in range(first + 1, last)),
        *((last, *rest) for rest in between([0] * (n - 1), high[1:], base)),
    ]


def _simplified(patterns: Iterable[Pattern]) -> frozenset[Pattern]:
    """The patterns as a set; one that matches everything replaces all others."""
    distinct = frozenset(patterns)
    everything = [pattern for pattern in distinct if all(token == ANY for token in pattern)]
    return frozenset(everything) if everything else distinct
