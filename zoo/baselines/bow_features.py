"""BowFeatures: class logits of a linear bag-of-words classifier, as a torch module that another classifier adds.

On a few thousand texts a bag of words is as accurate as a small Llama, and makes other mistakes. Its logits on the
texts that it was fitted to are overconfident, so the logits used in training come from fits without the text: stacked
generalization, Wolpert 1992, https://doi.org/10.1016/S0893-6080(05)80023-1.

Two classifiers: logistic regression on TF-IDF features of words, of characters or of both; and multinomial naive Bayes
on the presence of words. Naive Bayes is the more overconfident the longer a text is, so its logits are divided by the
temperature (Guo et al. 2017, https://arxiv.org/abs/1706.04599) that minimizes the loss of the held-out logits.
"""

import warnings
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.naive_bayes import MultinomialNB
from sklearn.preprocessing import normalize
from torch import Tensor

from zoo.baselines.bag_of_words import WORD_PATTERN, BowKind
from zoo.errors import UserError, check_number
from zoo.private_apis.torch_api import FixedBuffers, version
from zoo.training.random_streams import derive

BUCKETS = 2**18  # hash values of the features of a block
FOLDS = 5
# Blocks of features: words and pairs of words; and sequences of 2 to 5 characters within a word and the blanks around.
_WORDS = {"ngram_range": (1, 2), "token_pattern": WORD_PATTERN}
_CHARS = {"ngram_range": (2, 5), "analyzer": "char_wb"}
_BLOCKS: dict[str, list[dict[str, Any]]] = {
    "tfidf": [_WORDS],
    "naive_bayes": [_WORDS],
    "chars": [_CHARS],
    "words_and_chars": [_WORDS, _CHARS],
}


class BowFeatures(FixedBuffers):
    """Texts to class logits (B, C) by a linear classifier of hashed features of lower-case texts.

    Before `fit` all logits are 0.

    Args:
        n_classes: number of classes C.
        kind: "tfidf", logistic regression on sublinear TF-IDF of words and pairs of words; "chars", of sequences of 2
            to 5 characters of a word; "words_and_chars", of both; or "naive_bayes", on the presence of words and pairs.
        C: scikit-learn's inverse penalty of the logistic regression, above 0; larger values fit more closely.
    """

    weight: Tensor
    bias: Tensor
    idf: Tensor

    def __init__(self, n_classes: int, kind: BowKind = "tfidf", C: float = 3.0) -> None:
        super().__init__()
        if kind not in get_args(BowKind):
            raise UserError(f"bow_features must be one of {', '.join(get_args(BowKind))}, or null, not {kind!r}")
        check_number("bow_C", C, "above 0", lambda penalty: penalty > 0)
        self.kind, self.C, self.iterations = kind, C, 300
        self._copies: dict[str, tuple[Tensor, int, Tensor]] = {}  # name -> a buffer on a GPU, its version, its copy
        n_features = BUCKETS * len(_BLOCKS[kind])
        self.register_buffer("weight", torch.zeros(n_features, n_classes))
        self.register_buffer("bias", torch.zeros(n_classes))
        self.register_buffer("idf", torch.ones(n_features))
        self._vectorizers = [
            HashingVectorizer(n_features=BUCKETS, alternate_sign=False, norm=None, dtype=np.float32, **block)
            for block in _BLOCKS[kind]
        ]

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Logits (B, C) of B texts, on the device of the buffers."""
        return self.logits_on_cpu(texts).to(self.bias)

    def logits_on_cpu(self, texts: Sequence[str]) -> Tensor:
        """Logits (B, C) of B texts, on the CPU."""
        logits = self._features(texts) @ self._on_cpu("weight").numpy()
        return torch.from_numpy(logits) + self._on_cpu("bias")

    def _on_cpu(self, name: str) -> Tensor:
        """A buffer on the CPU, copied from a GPU only if it has changed since the last copy."""
        buffer = self.get_buffer(name)
        if buffer.device.type == "cpu":
            return buffer
        source, number, copy = self._copies.get(name, (None, 0, buffer))
        if source is not buffer or number != version(buffer):
            copy = buffer.cpu()
            self._copies[name] = buffer, version(buffer), copy
        return copy

    def fit(self, texts: Sequence[str], targets: np.ndarray) -> Tensor:
        """Fit the classifier to texts and their classes (N,).

        Returns:
            Logits (N, C) of the same texts, each from a fit to the other folds.
        """
        features = self.fit_features(texts)
        # The factor is found on held-out logits and applied to the fit to all texts.
        held_out, scale = self._calibrated(features, targets)
        weight, bias = self._fit_linear(features, targets)
        self.weight.copy_(torch.from_numpy(scale * weight))
        self.bias.copy_(torch.from_numpy(scale * bias))
        return torch.from_numpy(scale * held_out).float()

    def held_out_logits(self, texts: Sequence[str], targets: np.ndarray) -> Tensor:
        """The result of `fit` for a classifier that is fitted to these texts already; its buffers do not change."""
        held_out, scale = self._calibrated(self._features(texts), targets)
        return torch.from_numpy(scale * held_out).float()

    def fit_features(self, texts: Sequence[str]) -> Any:
        """Fit the weights of features to texts; returns their features, a sparse matrix (N, features)."""
        # Smoothed inverse document frequency, log((1 + N) / (1 + df)) + 1, from the training texts.
        blocks = self._counts(texts)
        document_counts = np.concatenate([np.bincount(block.indices, minlength=BUCKETS) for block in blocks])
        idf = np.log((1 + len(texts)) / (1 + document_counts)) + 1
        # A feature of no training text has weight 0, as in scikit-learn: it does not count in the length of a row.
        self.idf.copy_(torch.from_numpy(np.where(document_counts > 0, idf, 0)))
        return self._weighted(blocks)

    def cross_fit(self, features: Any, targets: np.ndarray, n_folds: int = FOLDS) -> np.ndarray:
        """Logits (N, C) of each row of `features`, from a fit to the other folds."""
        # Assign rows to folds of equal size at random; each fold gets the logits of a fit to the others.
        n_rows = features.shape[0]
        fold = np.random.default_rng(derive(0, "folds")).permutation(n_rows) % n_folds
        held_out = np.zeros((n_rows, len(self.bias)), dtype=np.float32)
        for number in range(n_folds):
            others = features[fold != number]
            weight, bias = self._fit_linear(others, targets[fold != number])
            held_out[fold == number] = self._without_unseen(features[fold == number], others) @ weight + bias
        return held_out

    def _without_unseen(self, features: Any, others: Any) -> Any:
        """TF-IDF `features` as they would be after a fit to `others`: without the columns that are empty there."""
        if self.kind == "naive_bayes":  # weights 0 of unseen columns, and rows of any length
            return features
        seen = np.zeros(features.shape[1], dtype=bool)
        seen[others.indices] = True
        features.data *= seen[features.indices]
        # Scale the rows of each block to length 1 again.
        row = np.repeat(np.arange(features.shape[0]), np.diff(features.indptr))
        block = row * len(self._vectorizers) + features.indices // BUCKETS  # number of the row of a block
        lengths = np.sqrt(np.bincount(block, features.data**2))
        features.data /= np.where(lengths > 0, lengths, 1)[block]
        return features

    def _calibrated(self, features: Any, targets: np.ndarray) -> tuple[np.ndarray, float]:
        """Logits (N, C) of each row from a fit to the other folds, and the factor that calibrates them."""
        held_out = self.cross_fit(features, targets)
        return held_out, inverse_temperature(held_out, targets) if self.kind == "naive_bayes" else 1.0

    def _counts(self, texts: Sequence[str]) -> list[Any]:
        """Sparse matrices (N, BUCKETS) of each block: how often a feature is in a text."""
        return [vectorizer.transform(texts) for vectorizer in self._vectorizers]

    def _features(self, texts: Sequence[str]) -> Any:
        return self._weighted(self._counts(texts))

    def _weighted(self, blocks: list[Any]) -> Any:
        """Sparse matrix (N, features): 1 for each word present, or TF-IDF in rows of length 1 in each block.

        Overwrites the counts in `blocks`.
        """
        # Naive Bayes reads presence only; TF-IDF is (1 + log count) idf, scaled to rows of length 1.
        for counts, idf in zip(blocks, np.split(self._on_cpu("idf").numpy(), len(blocks)), strict=True):
            if self.kind == "naive_bayes":
                counts.data[:] = 1
            else:
                counts.data = (1 + np.log(counts.data)) * idf[counts.indices]
                normalize(counts, copy=False)
        return blocks[0] if len(blocks) == 1 else sparse.hstack(blocks, format="csr")

    def _fit_linear(self, features: Any, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (features, C) and bias (C,); a class without a row gets a bias of -10 and is never predicted."""
        # Fit only the buckets that occur: the others keep weight 0.
        used, (classes, counts) = np.unique(features.indices), np.unique(targets, return_counts=True)
        n_features, n_classes = self.weight.shape
        weight, bias = np.zeros((n_features, n_classes), np.float32), np.full(n_classes, -10, np.float32)
        if len(classes) < 2:  # scikit-learn cannot fit a single class
            bias[classes] = 0
            return weight, bias
        if not len(used):  # texts without words: the frequencies of the classes
            bias[classes] = np.log(counts / len(targets))
            return weight, bias
        if self.kind == "naive_bayes":
            model = MultinomialNB().fit(features[:, used], targets)
            # Centre over the classes: it changes no probability.
            slope, offset = (each - each.mean(0) for each in (model.feature_log_prob_, model.class_log_prior_))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the limit of iterations is part of the model
                warnings.filterwarnings("ignore", message="The number of unique classes")  # classes of few rows
                model = LogisticRegression(C=self.C, max_iter=self.iterations).fit(features[:, used], targets)
            slope, offset = model.coef_, model.intercept_
            if len(slope) == 1:  # for two classes scikit-learn stores the difference of their logits
                slope, offset = np.concatenate([-slope, slope]) / 2, np.concatenate([-offset, offset]) / 2
        weight[np.ix_(used, classes)], bias[classes] = slope.T, offset
        return weight, bias


def inverse_temperature(logits: np.ndarray, targets: np.ndarray, most: float = 1.0) -> float:
    """The factor between 0.001 and `most` that minimizes the loss of logits (N, C) on the classes (N,)."""

    def loss(power: float) -> float:
        return log_loss(targets, softmax(10**power * logits, axis=1), labels=range(logits.shape[1]))

    return 10 ** minimize_scalar(loss, bounds=(-3, np.log10(most)), method="bounded").x
