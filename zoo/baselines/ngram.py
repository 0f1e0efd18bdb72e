"""N-gram language models: unigram with add-one smoothing, and interpolated Kneser-Ney.

Kneser & Ney 1995; the interpolated form of Chen & Goodman 1999, https://doi.org/10.1006/csla.1999.0128, with one
discount per order, n1 / (n1 + 2 n2), where n1 and n2 are the numbers of n-grams that occur once and twice. N-grams are
coded as integers and counted by sorting, so that millions of tokens take seconds.
"""

import numpy as np
from numpy.typing import NDArray

from zoo.errors import UserError

Ids = NDArray[np.integer]


class NGram:
    """N-gram model of token ids in [0, vocab_size).

    Args:
        tokens: the training text, (N,).
        vocab_size: number of token ids; each of them gets a positive probability.
        order: 1 for the unigram model with add-one smoothing, n > 1 for interpolated Kneser-Ney over n tokens.

    Raises:
        UserError: vocab_size ** order exceeds 62 bits, or order is below 1.
    """

    def __init__(self, tokens: Ids, vocab_size: int, order: int = 3) -> None:
        if order < 1 or order * np.log2(vocab_size) > 62:
            raise UserError(f"an n-gram of order {order} over {vocab_size} tokens does not fit 62 bits")
        self.vocab_size, self.order = vocab_size, order
        if order == 1:
            # The unigram model: relative frequencies after adding one to each count.
            smoothed = np.bincount(tokens, minlength=vocab_size) + 1.0
            self.unigram = smoothed / smoothed.sum()  # (V,)
            return
        self.levels = []
        # Kneser-Ney: counts of the text in the highest order.
        grams, counts = np.unique(_codes(tokens, order, vocab_size), return_counts=True)
        for length in range(order, 0, -1):
            self.levels.append(_Level(grams, counts, vocab_size))
            # In lower orders an n-gram is counted once for each different token that precedes it.
            grams, counts = np.unique(grams % vocab_size ** (length - 1), return_counts=True)
        self.levels.reverse()

    def probabilities(self, tokens: Ids) -> NDArray[np.float64]:
        """Probability of tokens[i] given the order - 1 tokens before it, or fewer at the beginning: (N,)."""
        if self.order == 1:
            return self.unigram[tokens]
        # Below the unigrams is the uniform distribution.
        probability = np.full(len(tokens), 1.0 / self.vocab_size)
        # From the shortest n-grams to the longest: each level interpolates with the one below it.
        for length, level in enumerate(self.levels, start=1):
            codes = _codes(tokens, length, self.vocab_size)  # (N - length + 1,)
            probability[length - 1 :] = level.interpolate(codes, probability[length - 1 :])
        return probability

    def nll(self, tokens: Ids) -> float:
        """Mean negative log-likelihood of tokens[1:] in nats per token, comparable to a language model's loss."""
        return float(-np.log(self.probabilities(tokens)[1:]).mean())


class _Level:
    """One order: max(c(h w) - D, 0) / c(h) + D N(h) / c(h) * p_lower(w), with N(h) different tokens after h."""

    def __init__(self, grams: NDArray[np.int64], counts: NDArray[np.int64], vocab_size: int) -> None:
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        # The discount is 0 where no n-gram occurs once; 0.5 then leaves some probability for unseen n-grams.
        self.discount = once / max(once + 2 * twice, 1) or 0.5
        # n-grams with the same history h are neighbours in the sorted table: c(h) and N(h) from each run of them.
        self.grams, self.counts, self.vocab_size = grams, counts, vocab_size
        self.histories, first = np.unique(grams // vocab_size, return_index=True)
        self.totals = np.add.reduceat(counts, first)
        self.followers = np.diff(np.append(first, len(grams)))

    def interpolate(self, codes: NDArray[np.int64], lower: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probabilities (N,) of n-grams given as codes (N,), from those of the order below, `lower` (N,)."""
        # Terms of the formula; an unknown history leaves the probability of the order below.
        gram, is_seen = _find(self.grams, codes)
        history, is_known = _find(self.histories, codes // self.vocab_size)
        discounted = np.where(is_seen, np.maximum(self.counts[gram] - self.discount, 0), 0)
        lower_share = self.discount * self.followers[history]
        return np.where(is_known, (discounted + lower_share * lower) / self.totals[history], lower)


def _codes(tokens: Ids, length: int, vocab_size: int) -> NDArray[np.int64]:
    """Each run of `length` tokens as one integer, the last token as its lowest digit: (N - length + 1,)."""
    codes = np.zeros(max(len(tokens) - length + 1, 0), dtype=np.int64)
    for i in range(length):
        codes = codes * vocab_size + tokens[i : i + len(codes)].astype(np.int64)
    return codes


def _find(table: NDArray[np.int64], keys: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The index of each key in a sorted table, and whether the table contains it."""
    index = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return index, table[index] == keys
