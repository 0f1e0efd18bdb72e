"""A bag of words beside the hidden state: the logits of a linear classifier of words and pairs of words.

On a few thousand texts it is a strong rival of a small Llama, and may err elsewhere. Its logits on the texts it was
fitted to say nothing of how far it can be trusted, so those for training come from fits without the text: stacked
generalization, Wolpert 1992, https://doi.org/10.1016/S0893-6080(05)80023-1.

Words weigh by TF-IDF in a logistic regression; or, by their presence, in multinomial naive Bayes, whose certainty grows
with a text's length beyond all reason and is therefore divided by a temperature (Guo et al. 2017,
https://arxiv.org/abs/1706.04599) that fits the logits of those held-out texts.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.naive_bayes import MultinomialNB
from sklearn.preprocessing import normalize
from torch import Tensor, nn

from zoo.baselines.baselines import WORDS
from zoo.errors import UserError
from zoo.training.random_streams import derive

BUCKETS = 2**18
Weigh = Literal["tfidf", "naive_bayes"]


class BagOfWords(nn.Module):
    """Texts to logits (B, C), once `fit`, from hashed words and pairs in lower case.

    Args:
        n_classes: C.
        weigh: "tfidf", with sublinear counts, for logistic regression; "naive_bayes", by presence.
        inverse_penalty: scikit-learn's `C` of that regression: the larger, the closer to the training texts.
    """

    weight: Tensor
    bias: Tensor
    idf: Tensor

    def __init__(self, n_classes: int, weigh: Weigh = "tfidf", inverse_penalty: float = 3.0) -> None:
        super().__init__()
        if weigh not in get_args(Weigh) or not inverse_penalty > 0:
            raise UserError(f"bag is tfidf or naive_bayes, and bag_c positive, not {weigh!r} and {inverse_penalty}")
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
        weight, bias = self._linear(features, targets)
        fold = np.random.default_rng(derive(seed, "folds")).permutation(len(texts)) % folds
        held_out = np.zeros((len(texts), len(bias)), dtype=np.float32)
        for number in range(folds):
            slope, offset = self._linear(features[fold != number], targets[fold != number])
            held_out[fold == number] = features[fold == number] @ slope + offset
        scale = _certainty(held_out, targets) if self.weigh == "naive_bayes" else 1.0
        self.weight.copy_(torch.from_numpy(scale * weight))
        self.bias.copy_(torch.from_numpy(scale * bias))
        return torch.from_numpy(scale * held_out)

    def _features(self, texts: Sequence[str]) -> Any:
        """(N, BUCKETS), sparse: of presence, or of TF-IDF in rows of length 1."""
        counts = self._hash.transform(texts).astype(np.float32)
        if self.weigh == "naive_bayes":
            counts.data[:] = 1
            return counts
        counts.data = (1 + np.log(counts.data)) * self.idf.cpu().numpy()[counts.indices]
        return normalize(counts, copy=False)

    def _linear(self, features: Any, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weights (BUCKETS, C) and bias (C,); a class without a row is never chosen."""
        seen, classes = np.unique(features.indices), np.unique(targets)
        weight, bias = np.zeros((BUCKETS, len(self.bias)), np.float32), np.full(len(self.bias), -10, np.float32)
        if len(classes) < 2:  # nothing to tell apart
            bias[classes] = 0
            return weight, bias
        if self.weigh == "naive_bayes":
            model = MultinomialNB().fit(features[:, seen], targets)
            slope, offset = (each - each.mean(0) for each in (model.feature_log_prob_, model.class_log_prior_))
        else:
            model = LogisticRegression(C=self.inverse_penalty, max_iter=300).fit(features[:, seen], targets)
            slope, offset = model.coef_, model.intercept_
            if len(slope) == 1:  # of two classes scikit-learn keeps the second's logit, less the first's
                slope, offset = np.concatenate([-slope, slope]) / 2, np.concatenate([-offset, offset]) / 2
        weight[np.ix_(seen, classes)], bias[classes] = slope.T, offset
        return weight, bias


def _certainty(logits: np.ndarray, targets: np.ndarray) -> float:
    """The factor, between a thousandth and 1, by which logits (N, C) tell the classes (N,) best: 1 / temperature."""

    def loss(power: float) -> float:
        return log_loss(targets, softmax(10**power * logits, axis=1), labels=range(logits.shape[1]))

    return 10 ** minimize_scalar(loss, bounds=(-3, 0), method="bounded").x
