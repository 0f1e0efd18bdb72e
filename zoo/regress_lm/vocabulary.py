"""The decoder's vocabulary: ids of number tokens, and the grammar of which may follow which."""

from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from zoo.errors import UserError, check_counts
from zoo.regress_lm.number_tokenizers import NumberTokenizer
from zoo.regress_lm.number_wrappers import PAD
from zoo.regress_lm.rounding import Floats


class NumberVocabulary:
    """A number tokenizer's tokens with upstream's ids: 0 is `<pad>`, which also starts every row; others are sorted.

    The `n_objectives` numbers of a row follow each other: `length` tokens from a vocabulary of `size`.

    Args:
        tokenizer: of one number.
        n_objectives: numbers of a row, at least 1.
    """

    def __init__(self, tokenizer: NumberTokenizer, n_objectives: int = 1) -> None:
        check_counts(n_objectives=n_objectives)
        self.tokenizer, self.n_objectives = tokenizer, n_objectives
        self.tokens = [PAD, *sorted(set(tokenizer.tokens) - {PAD})]
        self.size = len(self.tokens)
        self.length = n_objectives * tokenizer.num_tokens
        self._ids = np.array([self.tokens.index(token) for token in tokenizer.tokens])  # by local id
        self._local = np.zeros(self.size, dtype=np.int64)
        self._local[self._ids] = np.arange(len(self._ids))

    def encode(self, values: ArrayLike) -> Tensor:
        """Numbers (B, K) to ids (B, length), int64."""
        ids = self._ids[self.tokenizer.encode(values)]  # (B, K, num_tokens)
        if ids.shape[1] != self.n_objectives:
            raise UserError(f"a row holds {self.n_objectives} numbers here, not {ids.shape[1]}")
        return torch.from_numpy(ids.reshape(len(ids), self.length))

    def decode(self, ids: Tensor | ArrayLike) -> Floats:
        """Ids (..., length) that the grammar allows to numbers (..., K)."""
        array = np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids)
        return self.tokenizer.decode(self._local[array].reshape(*array.shape[:-1], self.n_objectives, -1))

    @cached_property
    def allowed(self) -> Tensor:
        """(S, V) bool: the tokens that may come in each state; the first state is 0."""
        allowed = torch.zeros(len(self.tokenizer.allowed), self.size, dtype=torch.bool)
        allowed[:, self._ids] = torch.from_numpy(self.tokenizer.allowed)
        return allowed

    @cached_property
    def next_state(self) -> Tensor:
        """(S, V) int64: the state after each token; after the last one of a number, 0 again."""
        states = len(self.tokenizer.allowed)
        next_state = torch.zeros(states, self.size, dtype=torch.int64)
        next_state[:, self._ids] = torch.from_numpy(self.tokenizer.next_state % states)
        return next_state

    @property
    def count(self) -> int:
        """Number of complete token sequences that the grammar allows."""
        # The number of prefixes that lead to each state, position by position.
        prefixes = {0: 1}
        for _ in range(self.tokenizer.num_tokens):
            extended: dict[int, int] = {}
            for state, count in prefixes.items():
                for token in self.allowed[state].nonzero().flatten().tolist():
                    after = int(self.next_state[state, token])
                    extended[after] = extended.get(after, 0) + count
            prefixes = extended
        return prefixes[0] ** self.n_objectives
