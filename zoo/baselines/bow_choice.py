"""Choice of a bag-of-words classifier by cross-validation on the training texts."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import softmax
from sklearn.metrics import log_loss

from zoo.baselines.bag_of_words import BowKind
from zoo.baselines.bow_features import BowFeatures, inverse_temperature
from zoo.training.random_streams import stream

FIRST_C = 10.0  # inverse penalty that the kinds are compared with
LARGER_C, SMALLER_C = (30.0, 100.0, 300.0, 1000.0), (3.0, 1.0)  # tried for the best kind, each list until it gets worse
N_FOLDS, ITERATIONS = 3, 100
MOST_ROWS = 2500  # a larger data set is subsampled at random to this many rows
BY_COST: tuple[BowKind, ...] = ("naive_bayes", "tfidf", "chars", "words_and_chars")
MOST_WORK = {"naive_bayes": np.inf, "tfidf": 2e8}  # characters times classes that a kind is fitted to in a minute
MOST_WORK_OF_CHARS = 5e6
# Estimates for limited time, on the safe side: the time of a kind's cross-validation as a multiple of that of the kind
# before, and the time of a fit to the same rows, with its held-out logits, as a multiple of cross-validation.
NEXT_KIND, FIT = 3.0, 8.0


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
    seconds: float = np.inf,
) -> list[BowTrial]:
    """Cross-validate the kinds of `BowFeatures`, then inverse penalties of the best kind.

    Args:
        texts: N training texts.
        targets: their classes, (N,).
        n_classes: number of classes C.
        kinds: the kinds to compare; by default all that can be fitted to these texts in a minute or two.
        seconds: time that the comparison may take, and after it the fit of the best kind to all texts. Kinds and
            penalties that do not fit are left out, except the first kind. With a limit the result depends on the speed
            of the machine.

    Returns:
        The trials, the one with the smallest loss first.
    """
    kinds = kinds or affordable_kinds(sum(map(len, texts)), n_classes)
    n_texts = len(texts)
    chosen: list[int] = list(range(n_texts))
    if n_texts > MOST_ROWS:
        chosen = torch.randperm(n_texts, device="cpu", generator=stream(0, "bow rows"))[:MOST_ROWS].tolist()
    texts, targets = [texts[i] for i in chosen], targets[chosen].astype(int)
    share, start = len(chosen) / n_texts, time.monotonic()
    fitted, taken = {}, 0.0
    trials: list[BowTrial] = []
    for kind in kinds:
        began = time.monotonic()
        if trials and began - start + NEXT_KIND * taken > seconds:
            break
        bag = BowFeatures(n_classes, kind)
        bag.iterations = ITERATIONS
        features = bag.fit_features(texts)
        trial = _cross_validated(bag, features, targets, FIRST_C)
        taken = time.monotonic() - began
        if trials and FIT * taken > seconds * share:
            break
        fitted[kind] = bag, features, taken
        trials.append(trial)
    best = min(trials, key=lambda trial: trial.loss)
    bag, features, taken = fitted[best.kind]
    # The loss is close to convex in log C: go on in one direction until it rises, and try the other one if the first
    # step is worse already.
    for penalties in () if best.kind == "naive_bayes" else (LARGER_C, SMALLER_C):
        for C in penalties:
            if time.monotonic() - start + taken > seconds:
                break
            trials.append(_cross_validated(bag, features, targets, C))
            if trials[-1].loss >= best.loss:
                break
            best = trials[-1]
        if best.C != FIRST_C:
            break
    return sorted(trials, key=lambda trial: trial.loss)


def affordable_kinds(n_characters: int, n_classes: int) -> list[BowKind]:
    """The kinds that can be fitted to `n_characters` of text within a minute or two, the fastest one first."""
    work = n_characters * (n_classes if n_classes > 2 else 1)  # two classes have one set of weights
    return [kind for kind in BY_COST if work <= MOST_WORK.get(kind, MOST_WORK_OF_CHARS)]


def _cross_validated(bag: BowFeatures, features: Any, targets: np.ndarray, C: float) -> BowTrial:
    bag.C, n_classes = C, len(bag.bias)
    logits = bag.cross_fit(features, targets, N_FOLDS)
    calibrated = inverse_temperature(logits, targets, most=30.0) * logits
    loss = log_loss(targets, softmax(calibrated, axis=1), labels=range(n_classes))
    return BowTrial(bag.kind, C, loss, float((logits.argmax(1) == targets).mean()))
