"""Choice of a bag-of-words classifier by cross-validation on the training texts."""

from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
from scipy.special import softmax
from sklearn.metrics import log_loss

from zoo.baselines.bag_of_words import BowKind
from zoo.baselines.bow_features import BowFeatures, inverse_temperature
from zoo.training.random_streams import stream

FIRST_C, OTHER_C = 10.0, (1.0, 3.0, 30.0, 100.0)  # inverse penalties
N_FOLDS = 3
MOST_ROWS = 4000  # of more rows, so many drawn at random are used
MOST_CHARACTERS = 1_000_000  # of these rows, for features of characters


class BowTrial(NamedTuple):
    """A kind of `BowFeatures` with its inverse penalty, and its held-out scores.

    Args:
        kind: the kind.
        C: the inverse penalty of its logistic regression; naive Bayes does not use it.
        loss: nats per text, at the temperature that minimizes it.
        accuracy: share of texts whose class is predicted.
    """

    kind: BowKind
    C: float
    loss: float
    accuracy: float


def compare_bow(texts: Sequence[str], targets: np.ndarray, n_classes: int, seed: int = 0) -> list[BowTrial]:
    """Cross-validate the kinds of `BowFeatures`, then inverse penalties of the best kind.

    Args:
        texts: N training texts.
        targets: their classes, (N,).
        n_classes: number of classes C.
        seed: of the drawing of rows.

    Returns:
        The trials, the one with the smallest loss first.
    """
    chosen = np.arange(len(texts))
    if len(texts) > MOST_ROWS:
        import torch

        chosen = torch.randperm(len(texts), generator=stream(seed, "bow rows")).numpy()[:MOST_ROWS]
    texts, targets = [texts[i] for i in chosen], targets[chosen].astype(int)
    is_long = sum(map(len, texts)) > MOST_CHARACTERS
    trials = []
    for kind in get_args(BowKind):
        if not (is_long and "chars" in kind):
            trials += _cross_validated(texts, targets, n_classes, kind, [FIRST_C])
    best = min(trials, key=lambda trial: trial.loss)
    if best.kind != "naive_bayes":
        trials += _cross_validated(texts, targets, n_classes, best.kind, OTHER_C)
    return sorted(trials, key=lambda trial: trial.loss)


def _cross_validated(
    texts: Sequence[str], targets: np.ndarray, n_classes: int, kind: BowKind, penalties: Sequence[float]
) -> list[BowTrial]:
    bag = BowFeatures(n_classes, kind)
    features, trials = bag.fit_features(texts), []
    for C in penalties:
        bag.C = C
        logits = bag.cross_fit(features, targets, N_FOLDS)
        calibrated = inverse_temperature(logits, targets, most=30.0) * logits
        loss = log_loss(targets, softmax(calibrated, axis=1), labels=range(n_classes))
        trials.append(BowTrial(kind, C, loss, float((logits.argmax(1) == targets).mean())))
    return trials
