"""Marginal distribution of number tokens: the loss of a model that ignores its input."""

from collections import Counter

import numpy as np


def marginal_nll(train: np.ndarray, held_out: np.ndarray, vocab_size: int) -> float:
    """Mean nats per row of `held_out` (M, L) under the distribution of the rows of `train` (N, L).

    Token by token from the left: the share of training rows with the same prefix that continue with this token, after
    adding one row that is spread evenly over the vocabulary.

    Args:
        train: training targets as token ids, (N, L).
        held_out: the targets to score, (M, L).
        vocab_size: number of token ids.
    """
    # -log of a row's probability, summed over its tokens.
    nats = np.zeros(len(held_out))
    for position in range(train.shape[1]):
        # Count the training rows by prefix, without and with the token at this position.
        prefix_counts = Counter(map(bytes, train[:, :position].astype(np.int32)))
        continued_counts = Counter(map(bytes, train[:, : position + 1].astype(np.int32)))
        # p(token | prefix), smoothed: one more row, 1 / V of it at each token.
        prefixes = map(bytes, held_out[:, :position].astype(np.int32))
        continued = map(bytes, held_out[:, : position + 1].astype(np.int32))
        nats -= np.log(
            [
                (continued_counts[c] + 1 / vocab_size) / (prefix_counts[p] + 1)
                for p, c in zip(prefixes, continued, strict=True)
            ]
        )
    return float(nats.mean())
