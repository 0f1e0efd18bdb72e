"""What stands beside every neural model: unigram and interpolated Kneser-Ney n-grams, the law of numbers alone, and
bags of words.

Kneser & Ney 1995; the interpolated form of Chen & Goodman 1999, https://doi.org/10.1006/csla.1999.0128, with one
discount per order, n1 / (n1 + 2 n2). Counting is a sort of n-grams coded as integers, so that millions of tokens
take seconds.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zoo.errors import UserError

Ids = NDArray[np.integer]
WORDS = r"(?u)\b\w+\b|[!?]"  # words of any length, and what exclaims or asks


class NGram:
    """An n-gram model of token ids in [0, vocab_size).

    Args:
        tokens: the training text, (N,).
        vocab_size: number of tokens; every one of them gets some probability.
        order: 1 for the unigram model (add-one smoothing), n for interpolated Kneser-Ney over n tokens.
    """

    def __init__(self, tokens: Ids, vocab_size: int, order: int = 3) -> None:
        if order < 1 or order * np.log2(vocab_size) > 62:
            raise UserError(f"an n-gram of order {order} over {vocab_size} tokens does not fit 62 bits")
        self.vocab_size, self.order = vocab_size, order
        if order == 1:
            counts = np.bincount(tokens, minlength=vocab_size) + 1.0
            self.unigram = counts / counts.sum()  # (V,)
            return
        self.levels = []
        grams, seen = np.unique(_codes(tokens, order, vocab_size), return_counts=True)
        for length in range(order, 0, -1):
            self.levels.append(_Level(grams, seen, vocab_size))
            # Below the top an n-gram counts once for every different token that came before it.
            grams, seen = np.unique(grams % vocab_size ** (length - 1), return_counts=True)
        self.levels.reverse()

    def probabilities(self, tokens: Ids) -> NDArray[np.float64]:
        """Probability of tokens[i] given the order - 1 tokens before it, or as many as there are: (N,)."""
        if self.order == 1:
            return self.unigram[tokens]
        probability = np.full(len(tokens), 1.0 / self.vocab_size)
        for length, level in enumerate(self.levels, start=1):
            codes = _codes(tokens, length, self.vocab_size)  # (N - length + 1,)
            probability[length - 1 :] = level.interpolate(codes, probability[length - 1 :])
        return probability

    def nll(self, tokens: Ids) -> float:
        """Mean negative log-likelihood of tokens[1:], in nats per token: what a language model's loss is."""
        return float(-np.log(self.probabilities(tokens)[1:]).mean())


class _Level:
    """One order: max(c(h w) - D, 0) / c(h) + D N(h) / c(h) * p_lower(w), N(h) the different followers of h."""

    def __init__(self, grams: NDArray[np.int64], counts: NDArray[np.int64], vocab_size: int) -> None:
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        self.discount = once / max(once + 2 * twice, 1) or 0.5  # 0 where nothing is rare: keep some for the unseen
        self.grams, self.counts, self.vocab_size = grams, counts, vocab_size
        self.histories, first = np.unique(grams // vocab_size, return_index=True)
        self.totals = np.add.reduceat(counts, first)
        self.followers = np.diff(np.append(first, len(grams)))

    def interpolate(self, codes: NDArray[np.int64], lower: NDArray[np.float64]) -> NDArray[np.float64]:
        gram, seen = _find(self.grams, codes)
        history, known = _find(self.histories, codes // self.vocab_size)
        own = np.where(seen, np.maximum(self.counts[gram] - self.discount, 0), 0)
        share = self.discount * self.followers[history]
        return np.where(known, (own + share * lower) / self.totals[history], lower)


def _codes(tokens: Ids, length: int, vocab_size: int) -> NDArray[np.int64]:
    """Every run of `length` tokens as one number, the last token in the lowest place: (N - length + 1,)."""
    codes = np.zeros(max(len(tokens) - length + 1, 0), dtype=np.int64)
    for i in range(length):
        codes = codes * vocab_size + tokens[i : i + len(codes)].astype(np.int64)
    return codes


def _find(table: NDArray[np.int64], keys: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where each key stands in a sorted table, and whether it does."""
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return at, table[at] == keys


def marginal_nll(train: np.ndarray, held_out: np.ndarray, vocab_size: int) -> float:
    """Nats per row of `held_out` (M, L) under the law of `train`'s rows (N, L), which knows nothing of the inputs.

    Token by token after the row's beginning: the share of training rows that went on so, with one row more that is
    spread evenly over the vocabulary. What a number costs whoever ignores the text.
    """
    nats = np.zeros(len(held_out))
    for position in range(train.shape[1]):
        seen = Counter(map(bytes, train[:, :position].astype(np.int32)))
        seen_on = Counter(map(bytes, train[:, : position + 1].astype(np.int32)))
        before = map(bytes, held_out[:, :position].astype(np.int32))
        after = map(bytes, held_out[:, : position + 1].astype(np.int32))
        nats -= np.log([(seen_on[a] + 1 / vocab_size) / (seen[b] + 1) for b, a in zip(before, after, strict=True)])
    return float(nats.mean())


def bag_of_words(
    kind: Literal["naive Bayes", "logistic regression"],
    texts: Sequence[str],
    classes: Ids,
    held_out: tuple[Sequence[str], Ids],
) -> tuple[Any, str]:
    """The scikit-learn pipeline on words and pairs of words that does best on `held_out`, of a small grid; and which.

    Args:
        kind: the classifier; words, words and !?, or all between spaces weigh by presence or by TF-IDF, plain or
            sublinear.
        texts, classes: to learn from, N of each.
        held_out: texts and classes that choose weights, smoothing and penalty; on these the score flatters.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    words: dict[str, Any] = {"words": {"ngram_range": (1, 2)}}
    words["words and !?"] = words["words"] | {"token_pattern": WORDS}
    words["all between spaces"] = words["words"] | {"token_pattern": r"\S+"}
    weights = {
        f"{which}, {name}": weigh(**options, **words[which])
        for which in words
        for name, weigh, options in (
            ("presence", CountVectorizer, {"binary": True}),
            ("TF-IDF", TfidfVectorizer, {}),
            ("sublinear TF-IDF", TfidfVectorizer, {"sublinear_tf": True}),
        )
        if (kind, name) != ("logistic regression", "presence")
    }
    best = (-1.0, None, "")
    for name, weigh in weights.items():
        features = weigh.fit_transform(texts)
        if kind == "naive Bayes":
            tried = {f"alpha {a}": MultinomialNB(alpha=a) for a in (0.03, 0.1, 0.3, 1.0)}
        else:
            tried = {f"C {c}": LogisticRegression(C=c, max_iter=300) for c in (1, 3, 10, 100)}
        for setting, model in tried.items():
            model.fit(features, classes)
            score = model.score(weigh.transform(held_out[0]), held_out[1])
            if score > best[0]:
                best = (score, make_pipeline(weigh, model), f"{name}, {setting}")
    return best[1:]
