"""TextScores: a number for each target that says what a text predicts, by a linear model of its n-grams."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.training.random_streams import derive

N_FOLDS = 5
ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0)  # strengths of the regularisation that are compared
TOLERANCE = 1e-3


class TextScores:
    """Ridge regressions on the TF-IDF weights of words, pairs of words, and pieces of 2 to 5 characters.

    Args:
        texts: R texts.
        targets: (R, K) numbers to predict, of about unit scale.
        groups: (R,) rows of one group are left out together.
        seed: seed of the folds.

    Attributes:
        left_out: (R, K) prediction for each row by models that were fitted to other rows.
    """

    def __init__(self, texts: Sequence[str], targets: np.ndarray, groups: np.ndarray, seed: int) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.model_selection import GroupKFold
        from sklearn.pipeline import make_union

        words = TfidfVectorizer(token_pattern=r"(?u)\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True)
        pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
        self._vectors = make_union(words, pieces)
        inputs = self._vectors.fit_transform(texts)
        # The first fold chooses the strength of the regularisation, by the error on rows left out.
        _, group = np.unique(groups, return_inverse=True)
        self.left_out = np.tile(targets.mean(axis=0), (len(targets), 1))
        alpha = ALPHAS[len(ALPHAS) // 2]
        if (n_folds := min(N_FOLDS, group.max() + 1)) > 1:
            splitter = GroupKFold(n_folds, shuffle=True, random_state=derive(seed, "folds") % 2**32)
            folds = [*splitter.split(inputs, groups=group)]
            fit, rest = folds[0]
            errors = [
                np.abs(_predict(_fit(inputs[fit], targets[fit], a), inputs[rest]) - targets[rest]).mean()
                for a in ALPHAS
            ]
            alpha = ALPHAS[int(np.argmin(errors))]
            for fit, rest in folds:
                self.left_out[rest] = _predict(_fit(inputs[fit], targets[fit], alpha), inputs[rest])
        self._model = _fit(inputs, targets, alpha)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """(N, K) predictions for N texts."""
        return _predict(self._model, self._vectors.transform(texts))


def _fit(inputs: Any, targets: np.ndarray, alpha: float) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge(alpha, solver="sparse_cg", tol=TOLERANCE).fit(inputs, targets)


def _predict(model: Any, inputs: Any) -> np.ndarray:
    """(N, K) predictions."""
    return model.predict(inputs).reshape(inputs.shape[0], -1)
