"""A bag of words beside the hidden state: the logits of a logistic regression on words and pairs of words.

On a few thousand texts it is a strong rival of a small Llama, and may err elsewhere. Its logits on the texts it was
fitted to say nothing of how far it can be trusted, so those for training come from fits without the text: stacked
generalization, Wolpert 1992, https://doi.org/10.1016/S0893-6080(05)80023-1.

Words weigh by TF-IDF, which suits sentences; or by presence times the logarithm of how much likelier they are in a
class than outside it, which suits whole reviews: Wang & Manning 2012, https://aclanthology.org/P12-2018.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from torch import Tensor, nn

from zoo.streams import derive

BUCKETS = 2**18
WORDS = r"(?u)\b\w+\b|[!?]"
Weigh = Literal["tfidf", "naive_bayes"]


class BagOfWords(nn.Module):
    """Texts to logits (B, C), once `fit`, from hashed words and pairs in lower case.

    Args:
        n_classes: C.
        weigh: "tfidf", with sublinear counts, for one regression on all classes; "naive_bayes", log-ratios of presence,
            for a regression on each class against the rest.
        inverse_penalty: scikit-learn's `C`: the larger, the closer to the training texts.
    """

    weight: Tensor
    bias: Tensor
    idf: Tensor

    def __init__(self, n_classes: int, weigh: Weigh = "tfidf", inverse_penalty: float = 3.0) -> None:
        super().__init__()
        if weigh not in get_args(Weigh) or not inverse_penalty > 0:
            raise ValueError(f"bag is tfidf or naive_bayes, and bag_c positive, not {weigh!r} and {inverse_penalty}")
        self.weigh, self.inverse_penalty = weigh, inverse_penalty
        self.register_buffer("weight", torch.zeros(BUCKETS, n_classes))
        self.register_buffer("bias", torch.zeros(n_classes))
        self.register_buffer("idf", torch.ones(BUCKETS))
        self._hash = HashingVectorizer(
            n_features=BUCKETS, alternate_sign=False, norm=None, ngram_range=(1, 2), token_pattern=WORDS
        )

    def forward(self, texts: Sequence[str]) -> Tensor:
        logits = self._features(texts) @ self.weight.cpu().numpy()
        return torch.from_numpy(logits).to(self.bias) + self.bias

    def fit(self, texts: Sequence[str], targets: np.ndarray, folds: int = 5, seed: int = 0) -> Tensor:
        """Learn from texts and their classes (N,); returns logits (N, C), each by a fit without the text's fold."""
        counts = self._hash.transform(texts)
        appear = np.bincount(counts.indices, minlength=BUCKETS)
        self.idf.copy_(torch.from_numpy(np.log((1 + len(texts)) / (1 + appear)) + 1))
        features = self._features(texts)
        weight, bias = self._regress(features, targets)
        self.weight.copy_(torch.from_numpy(weight))
        self.bias.copy_(torch.from_numpy(bias))
        fold = np.random.default_rng(derive(seed, "folds")).permutation(len(texts)) % folds
        held_out = np.zeros((len(texts), len(bias)), dtype=np.float32)
        for number in range(folds):
            weight, bias = self._regress(features[fold != number], targets[fold != number])
            held_out[fold == number] = features[fold == number] @ weight + bias
        return torch.from_numpy(held_out)

    def _features(self, texts: Sequence[str]) -> Any:
        """(N, BUCKETS), sparse: of presence, or of TF-IDF in rows of length 1."""
        counts = self._hash.transform(texts).astype(np.float32)
        if self.weigh == "naive_bayes":
            counts.data[:] = 1
            return counts
        counts.data = (1 + np.log(counts.data)) * self.idf.cpu().numpy()[counts.indices]
        return normalize(counts, copy=False)

    def _regress(self, features: Any, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (BUCKETS, C) and bias (C,); a class without a row is never chosen."""
        seen = np.unique(features.indices)
        features = features[:, seen]
        weight, bias = np.zeros((BUCKETS, len(self.bias)), np.float32), np.full(len(self.bias), -10, np.float32)
        classes = np.unique(targets)
        if len(classes) < 2:  # nothing to tell apart
            bias[classes] = 0
            return weight, bias
        if self.weigh == "naive_bayes":
            for number in classes:
                mine = targets == number
                inside, outside = (1 + np.asarray(features[rows].sum(0)).ravel() for rows in (mine, ~mine))
                ratio = np.log(inside / inside.sum()) - np.log(outside / outside.sum())
                slope, offset = self._slope(features.multiply(ratio).tocsr(), mine)
                weight[seen, number], bias[number] = ratio * slope[0], offset[0]
            return weight, bias
        slope, offset = self._slope(features, targets)
        if len(slope) == 1:  # of two classes scikit-learn keeps the second's logit, less the first's
            slope, offset = np.concatenate([-slope, slope]) / 2, np.concatenate([-offset, offset]) / 2
        weight[np.ix_(seen, classes)], bias[classes] = slope.T, offset
        return weight, bias

    def _slope(self, features: Any, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        model = LogisticRegression(C=self.inverse_penalty, max_iter=300).fit(features, targets)
        return model.coef_, model.intercept_
