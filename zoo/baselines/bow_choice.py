"""Choice of a bag-of-words classifier by cross-validation on the training texts."""

from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
import torch
from scipy.special import softmax
from sklearn.metrics import log_loss

from zoo.baselines.bag_of_words import BowKind
from zoo.baselines.bow_features import BowFeatures, inverse_temperature
from zoo.training.random_streams import stream

FIRST_C, OTHER_C = 10.0, (3.0, 30.0, 100.0)  # inverse penalties
N_FOLDS, ITERATIONS = 3, 100
MOST_ROWS = 2500  # of more rows, so many drawn at random are used
MOST_WORK = {"naive_bayes": np.inf, "tfidf": 2e8}  # characters times classes that a kind is fitted to in a minute
MOST_WORK_OF_CHARS = 5e6


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


def compare_bow(
    texts: Sequence[str],
    targets: np.ndarray,
    n_classes: int,
    kinds: Sequence[BowKind] | None = None,
    seed: int = 0,
) -> list[BowTrial]:
    """Cross-validate the kinds of `BowFeatures`, then inverse penalties of the best kind.

    Args:
        texts: N training texts.
        targets: their classes, (N,).
        n_classes: number of classes C.
        kinds: the kinds to compare; by default all that can be fitted to these texts in a minute or two.
        seed: of the drawing of rows.

    Returns:
        The trials, the one with the smallest loss first.
    """
    kinds = kinds or affordable_kinds(sum(map(len, texts)), n_classes)
    chosen: list[int] = list(range(len(texts)))
    if len(texts) > MOST_ROWS:
        chosen = torch.randperm(len(texts), generator=stream(seed, "bow rows"))[:MOST_ROWS].tolist()
    texts, targets = [texts[i] for i in chosen], targets[chosen].astype(int)
    trials = [trial for kind in kinds for trial in _cross_validated(texts, targets, n_classes, kind, [FIRST_C])]
    best = min(trials, key=lambda trial: trial.loss)
    if best.kind != "naive_bayes":
        trials += _cross_validated(texts, targets, n_classes, best.kind, OTHER_C)
    return sorted(trials, key=lambda trial: trial.loss)


def affordable_kinds(n_characters: int, n_classes: int) -> list[BowKind]:
    """The kinds that can be fitted to texts of so many characters within a minute or two."""
    work = n_characters * (n_classes if n_classes > 2 else 1)  # two classes have one set of weights
    return [kind for kind in get_args(BowKind) if work <= MOST_WORK.get(kind, MOST_WORK_OF_CHARS)]


def _cross_validated(
    texts: Sequence[str], targets: np.ndarray, n_classes: int, kind: BowKind, penalties: Sequence[float]
) -> list[BowTrial]:
    bag = BowFeatures(n_classes, kind)
    bag.iterations = ITERATIONS
    features, trials = bag.fit_features(texts), []
    for C in penalties:
        bag.C = C
        logits = bag.cross_fit(features, targets, N_FOLDS)
        calibrated = inverse_temperature(logits, targets, most=30.0) * logits
        loss = log_loss(targets, softmax(calibrated, axis=1), labels=range(n_classes))
        trials.append(BowTrial(kind, C, loss, float((logits.argmax(1) == targets).mean())))
    return trials
