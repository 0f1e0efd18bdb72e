"""Ensemble: regression models of a small table of numbers, chosen by cross-validation, with a distribution per row."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm, rankdata

from zoo.training.random_streams import derive

MOST_FOLDS, MOST_COMPARED = 5, 2000  # folds of the cross-validation, and rows that it uses
N_TREES, N_COMPARED_TREES = 300, 100


class TargetScale:
    """Monotone transformation of a target to about unit scale.

    The logarithm where that makes a positive target less skewed; else, where it is skewed, the normal quantile of the
    rank; else the number itself. The inverse is limited to the range of the training targets.

    Args:
        y: (R,) training targets.
    """

    def __init__(self, y: np.ndarray) -> None:
        self._kind = "identity"
        asymmetry = _asymmetry(y)
        if y.min() > 0 and _asymmetry(np.log(y)) < asymmetry:
            self._kind = "log"
        elif asymmetry > 1:
            self._kind = "rank"
            # Of equal targets the mean rank.
            self._knots, index = np.unique(y, return_index=True)
            self._quantiles = norm.ppf((rankdata(y)[index] - 0.5) / len(y))
        z = self._transform(y)
        self._low, self._high, self._mean, self._sd = z.min(), z.max(), z.mean(), z.std() or 1.0

    def __call__(self, y: np.ndarray) -> np.ndarray:
        """The transformed targets."""
        return (self._transform(y) - self._mean) / self._sd

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """The targets that have the transformed values `z`."""
        z = np.clip(z * self._sd + self._mean, self._low, self._high)
        if self._kind == "rank":
            return np.interp(z, self._quantiles, self._knots)
        return np.exp(z) if self._kind == "log" else z

    def _transform(self, y: np.ndarray) -> np.ndarray:
        if self._kind == "rank":
            return np.interp(y, self._knots, self._quantiles)
        return np.log(y) if self._kind == "log" else y


def _asymmetry(y: np.ndarray) -> float:
    """The absolute skewness of numbers (R,); infinite where they are too large to compute it."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        deviations = y - y.mean()
        sd = np.sqrt(np.square(deviations).mean())
        skewness = (deviations**3).mean() / sd**3 if sd > 0 else 0.0
    return abs(float(skewness)) if np.isfinite(skewness) else np.inf


class Choice(NamedTuple):
    """An ensemble: (1 - weight) trees + weight smooth, with the trees' deviations from their mean times `spread`."""

    trees: str
    smooth: str
    weight: float
    spread: float

    def __str__(self) -> str:
        trees = "extra trees" if self.trees == "extra" else "a random forest"
        smooth = "ridge regression" if self.smooth == "ridge" else "a support vector machine"
        if not self.weight:
            return trees
        return f"{trees} (weight {1 - self.weight:g}) and {smooth} ({self.weight:g})"


class Errors(NamedTuple):
    """Errors on R rows by models that were fitted without them, in units of how much the trees differ on the row.

    A row's unit is the standard deviation of its trees' predictions plus `floor`.
    """

    values: np.ndarray  # (R, K)
    floor: np.ndarray  # (K,)


class Ensemble:
    """Trees that are averaged with a smooth model where cross-validation prefers that; it predicts distributions.

    The trees are extra trees or a random forest, the smooth model ridge regression or a support vector machine. The
    choice, and the factor by which the trees' spread is multiplied, minimise the CRPS on rows left out.

    Args:
        inputs: (R, F), NaN where a cell is missing.
        targets: (R, K).
        groups: (R,) rows of one group are left out together.
        seed: of the trees and the folds.
    """

    def __init__(self, inputs: np.ndarray, targets: np.ndarray, groups: Sequence[str], seed: int) -> None:
        self._scales = [TargetScale(y) for y in targets.T]
        z = np.stack([scale(y) for scale, y in zip(self._scales, targets.T, strict=True)], axis=1)
        self.choice, self.crps, self._errors = _choose(inputs, z, np.asarray(groups), seed)
        self._trees = _make_trees(self.choice.trees, N_TREES, seed).fit(inputs, _columns(z))
        self._smooth = _make_smooth(self.choice.smooth).fit(inputs, z) if self.choice.weight else None

    def __str__(self) -> str:
        return str(self.choice)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """(N, K) the centre of each row's distribution."""
        return self._inverse(self._centre(inputs, self._mean(inputs)))

    def sample(self, inputs: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """(N, K) a draw for each row, which deviates from the prediction as one random tree from all trees."""
        mean = self._mean(inputs)
        tree = random.integers(len(self._trees.estimators_), size=len(inputs))
        drawn = np.empty_like(mean)
        for i, estimator in enumerate(self._trees.estimators_):
            rows = tree == i
            if rows.any():
                drawn[rows] = estimator.predict(inputs[rows]).reshape(-1, mean.shape[1])
        return self._inverse(self._centre(inputs, mean) + self.choice.spread * (drawn - mean))

    def draw_targets(self, inputs: np.ndarray, n_draws: int, random: np.random.Generator) -> np.ndarray | None:
        """(N, n_draws, K) numbers that new rows may have: predictions with errors of rows that were left out.

        Unlike `sample` it repeats how far the predictions are from numbers that the models have not seen. None where
        no rows could be left out.
        """
        if self._errors is None:
            return None
        by_tree = np.stack([tree.predict(inputs).reshape(len(inputs), -1) for tree in self._trees.estimators_])
        unit = by_tree.std(0) + self._errors.floor  # (N, K)
        errors = self._errors.values[random.integers(len(self._errors.values), size=(len(inputs), n_draws))]
        drawn = self._centre(inputs, by_tree.mean(0))[:, None] + errors * unit[:, None]  # (N, n_draws, K)
        return self._inverse(drawn.reshape(-1, unit.shape[1])).reshape(drawn.shape)

    def _mean(self, inputs: np.ndarray) -> np.ndarray:
        return self._trees.predict(inputs).reshape(len(inputs), -1)

    def _centre(self, inputs: np.ndarray, mean: np.ndarray) -> np.ndarray:
        if self._smooth is None:
            return mean
        return (1 - self.choice.weight) * mean + self.choice.weight * self._smooth.predict(inputs).reshape(mean.shape)

    def _inverse(self, z: np.ndarray) -> np.ndarray:
        return np.stack([scale.inverse(column) for scale, column in zip(self._scales, z.T, strict=True)], axis=1)


def _choose(inputs: np.ndarray, z: np.ndarray, groups: np.ndarray, seed: int) -> tuple[Choice, float, Errors | None]:
    """The ensemble with the smallest CRPS on rows left out, that CRPS in standard deviations of the targets, and its
    errors on these rows."""
    from sklearn.model_selection import GroupKFold

    random = np.random.default_rng(derive(seed, "folds"))
    if len(z) > MOST_COMPARED:
        used = np.sort(random.permutation(len(z))[:MOST_COMPARED])
        inputs, z, groups = inputs[used], z[used], groups[used]
    _, group = np.unique(groups, return_inverse=True)
    n_folds = min(MOST_FOLDS, group.max() + 1)
    if n_folds < 2:
        return Choice("extra", "ridge", 0.0, 1.0), float("nan"), None
    # Predictions for every row by models that were fitted without it: of each tree (R, K, T), and smooth ones (R, K).
    kinds, smooths = ("extra", "forest"), ("ridge", "svm")
    by_tree = {kind: np.empty((*z.shape, N_COMPARED_TREES)) for kind in kinds}
    by_smooth = {smooth: np.empty_like(z) for smooth in smooths}
    for fit, left_out in GroupKFold(n_folds, shuffle=True, random_state=_state(seed)).split(z, groups=group):
        for kind in kinds:
            trees = _make_trees(kind, N_COMPARED_TREES, seed).fit(inputs[fit], _columns(z[fit]))
            for i, tree in enumerate(trees.estimators_):
                by_tree[kind][left_out, :, i] = tree.predict(inputs[left_out]).reshape(-1, z.shape[1])
        for smooth in smooths:
            model = _make_smooth(smooth).fit(inputs[fit], z[fit])
            by_smooth[smooth][left_out] = model.predict(inputs[left_out]).reshape(-1, z.shape[1])
    best, best_crps = Choice("extra", "ridge", 0.0, 1.0), np.inf
    for kind, samples in by_tree.items():
        mean = samples.mean(axis=2)
        deviations = np.sort(samples - mean[..., None], axis=2)
        # Half the mean distance of two trees, from the sorted deviations.
        T = N_COMPARED_TREES
        half_distance = (deviations * (2 * np.arange(T) - T + 1)).sum(2) / T**2
        for smooth, predictions in by_smooth.items():
            for weight in (0.0, 0.25, 0.5, 0.75, 1.0):
                error = (z - (1 - weight) * mean - weight * predictions)[..., None]
                for spread in (0.25, 0.5, 0.75, 1.0, 1.25):
                    crps = (np.abs(spread * deviations - error).mean(2) - spread * half_distance).mean()
                    if crps < best_crps - 1e-9:
                        best, best_crps = Choice(kind, smooth, weight, spread), crps
    mean, sd = by_tree[best.trees].mean(2), by_tree[best.trees].std(2)  # (R, K)
    floor = 0.1 * np.median(sd, axis=0)
    floor = np.where(floor > 0, floor, 1.0)
    centre = (1 - best.weight) * mean + best.weight * by_smooth[best.smooth]
    return best, float(best_crps), Errors((z - centre) / (sd + floor), floor)


def _make_trees(kind: str, n_trees: int, seed: int) -> Any:
    from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor

    make = ExtraTreesRegressor if kind == "extra" else RandomForestRegressor
    return make(n_trees, random_state=_state(seed))


def _make_smooth(kind: str) -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import RidgeCV
    from sklearn.multioutput import MultiOutputRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "ridge":
        model: Any = RidgeCV(np.logspace(-2, 3, 11))
    else:
        from sklearn.svm import SVR

        model = MultiOutputRegressor(SVR(C=3, epsilon=0.05))
    return make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler(), model
    )


def _columns(z: np.ndarray) -> np.ndarray:
    """Targets as scikit-learn's trees expect them: (R,) if there is one."""
    return z[:, 0] if z.shape[1] == 1 else z


def _state(seed: int) -> int:
    """A seed that fits into scikit-learn's 32 bits."""
    return derive(seed, "scikit-learn") % 2**32
