"""Ensemble: regression models of a small table of numbers, chosen by cross-validation, with a distribution per row."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from zoo.training.random_streams import derive

MOST_FOLDS, MOST_COMPARED = 5, 2000  # folds of the cross-validation, and rows that it uses
N_TREES, N_COMPARED_TREES = 300, 100
FAST_FOLDS, FAST_COMPARED = 2, 500  # of the teacher "fast"
FAST_TREES, FAST_COMPARED_TREES = 100, 50
LEAST_BOOSTED = 500  # rows of tables for which boosted trees are compared
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the model that is averaged with trees
FACTORS = (0.5, 0.75, 1.0, 1.25)  # of the deviations of trees
LEAST_DEVIATION = 0.02  # added to the standard deviation of trees, in standard deviations of the targets
EXPONENTS = (0.0, 0.5, 1.0)  # of the standard deviation of trees, to which errors are proportional

TeacherKind = Literal["thorough", "fast"]


class Effort(NamedTuple):
    """Models that an ensemble may consist of, and the work of their comparison.

    Args:
        kinds: kinds of trees, "extra" and "forest".
        smooths: names of models that are averaged with the trees.
        folds: folds of the cross-validation.
        rows: rows that it uses.
        compared_trees: trees of each model in it.
        trees: trees of the final fit.
    """

    kinds: tuple[str, ...]
    smooths: tuple[str, ...]
    folds: int
    rows: int
    compared_trees: int
    trees: int

    @classmethod
    def of(cls, kind: TeacherKind, n_rows: int) -> "Effort":
        """The effort of a kind of teacher for a table of `n_rows` rows."""
        if kind == "fast":
            return cls(("extra",), ("ridge",), FAST_FOLDS, FAST_COMPARED, FAST_COMPARED_TREES, FAST_TREES)
        boosted = ("boosting",) if min(n_rows, MOST_COMPARED) >= LEAST_BOOSTED else ()
        smooths = ("ridge", "svm", *boosted)
        return cls(("extra", "forest"), smooths, MOST_FOLDS, MOST_COMPARED, N_COMPARED_TREES, N_TREES)


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
            from scipy.stats import norm, rankdata  # here, because importing them takes a second

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
    """An ensemble and its noise.

    Args:
        trees: "extra" for extra trees, "forest" for a random forest, "both" for half of the trees of each.
        smooth: "ridge", "svm" or "boosting", the model that is averaged with the trees.
        weight: weight of that model, from 0 to 1; the trees have the rest.
        noise: "trees", deviations of single trees from their mean; or "residuals", errors on rows left out.
        scale: factor of the deviations of trees; or exponent of the trees' standard deviation to which residuals are
            proportional, 0 for residuals of equal size everywhere.
    """

    trees: str
    smooth: str
    weight: float
    noise: str = "trees"
    scale: float = 1.0

    def __str__(self) -> str:
        trees = {"extra": "extra trees", "forest": "a random forest", "both": "extra trees with a random forest"}
        if not self.weight:
            return trees[self.trees]
        smooth = {"ridge": "ridge regression", "svm": "a support vector machine", "boosting": "boosted trees"}
        if self.weight == 1:
            return smooth[self.smooth]
        return f"{trees[self.trees]} (weight {1 - self.weight:g}) and {smooth[self.smooth]} ({self.weight:g})"


class Errors(NamedTuple):
    """Errors (R, K) on rows by models that were fitted without them, divided by `_deviation` with this exponent."""

    values: np.ndarray
    exponent: float


class Ensemble:
    """Trees that are averaged with another model where cross-validation prefers that; it predicts distributions.

    The trees are extra trees, a random forest or half of the trees of each; the other model is ridge regression, a
    support vector machine or boosted trees. A row's distribution is the prediction with noise: as single trees deviate
    from their mean, or as the errors on rows left out. The choice of all of these minimises the CRPS on rows left out.

    Args:
        inputs: (R, F), NaN where a cell is missing.
        targets: (R, K).
        groups: (R,) rows of one group are left out together.
        seed: seed of the trees and the folds.
        kind: "thorough", or "fast" for extra trees and ridge regression alone, compared on few rows.
    """

    def __init__(
        self,
        inputs: np.ndarray,
        targets: np.ndarray,
        groups: Sequence[str],
        seed: int,
        kind: TeacherKind = "thorough",
    ) -> None:
        self._scales = [TargetScale(y) for y in targets.T]
        z = np.stack([scale(y) for scale, y in zip(self._scales, targets.T, strict=True)], axis=1)
        effort = Effort.of(kind, len(z))
        self.choice, self.crps, self._errors = _choose(inputs, z, np.asarray(groups), seed, effort)
        self._trees = _fit_trees(self.choice.trees, effort.trees, seed, inputs, z)
        self._smooth = _make_smooth(self.choice.smooth, seed).fit(inputs, z) if self.choice.weight else None

    def __str__(self) -> str:
        return str(self.choice)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """(N, K) the centre of each row's distribution."""
        return self._inverse(self._centre(inputs, self._by_tree(inputs).mean(axis=2)))

    def sample(self, inputs: np.ndarray, random: np.random.Generator, noise: float = 1.0) -> np.ndarray:
        """(N, K) a draw of each row's distribution, whose deviation from its median is multiplied by `noise`."""
        by_tree = self._by_tree(inputs)  # (N, K, T)
        mean = by_tree.mean(axis=2)
        if self.choice.noise == "trees":
            # All targets of a row deviate as the same tree.
            tree = random.integers(by_tree.shape[2], size=len(inputs))
            deviation = self.choice.scale * (by_tree[np.arange(len(inputs)), :, tree] - mean)
            median = self.choice.scale * (np.median(by_tree, axis=2) - mean)
        else:
            # The errors of the same row for all targets.
            assert self._errors is not None
            errors, size = self._errors.values, _deviation(by_tree, self._errors.exponent)
            row = random.integers(len(errors), size=len(inputs))
            deviation, median = errors[row] * size, np.median(errors, axis=0) * size
        return self._inverse(self._centre(inputs, mean) + median + noise * (deviation - median))

    def draw_targets(self, inputs: np.ndarray, n_draws: int, random: np.random.Generator) -> np.ndarray | None:
        """(N, n_draws, K) numbers that new rows may have: predictions with errors of rows that were left out.

        None where no rows could be left out.
        """
        if self._errors is None:
            return None
        by_tree = self._by_tree(inputs)
        size = _deviation(by_tree, self._errors.exponent)[:, None]  # (N, 1, K)
        errors = self._errors.values[random.integers(len(self._errors.values), size=(len(inputs), n_draws))]
        drawn = self._centre(inputs, by_tree.mean(axis=2))[:, None] + errors * size  # (N, n_draws, K)
        return self._inverse(drawn.reshape(-1, drawn.shape[2])).reshape(drawn.shape)

    def _by_tree(self, inputs: np.ndarray) -> np.ndarray:
        return _predict_by_tree(self._trees, inputs, len(self._scales))

    def _centre(self, inputs: np.ndarray, mean: np.ndarray) -> np.ndarray:
        if self._smooth is None:
            return mean
        return (1 - self.choice.weight) * mean + self.choice.weight * self._smooth.predict(inputs).reshape(mean.shape)

    def _inverse(self, z: np.ndarray) -> np.ndarray:
        return np.stack([scale.inverse(column) for scale, column in zip(self._scales, z.T, strict=True)], axis=1)


def _choose(
    inputs: np.ndarray, z: np.ndarray, groups: np.ndarray, seed: int, effort: Effort
) -> tuple[Choice, float, Errors | None]:
    """The ensemble with the smallest CRPS on rows left out, that CRPS in standard deviations of the targets, and its
    errors on these rows; None if no rows can be left out."""
    from sklearn.model_selection import GroupKFold

    random = np.random.default_rng(derive(seed, "folds"))
    if len(z) > effort.rows:
        used = np.sort(random.permutation(len(z))[: effort.rows])
        inputs, z, groups = inputs[used], z[used], groups[used]
    _, group = np.unique(groups, return_inverse=True)
    n_folds = min(effort.folds, group.max() + 1)
    if n_folds < 2:
        return Choice("extra", "ridge", 0.0), float("nan"), None
    # Predictions for every row by models that were fitted without it: of each tree (R, K, T), and smooth ones (R, K).
    by_tree = {kind: np.empty((*z.shape, effort.compared_trees)) for kind in effort.kinds}
    by_smooth = {smooth: np.empty_like(z) for smooth in effort.smooths}
    for fit, left_out in GroupKFold(n_folds, shuffle=True, random_state=_state(seed)).split(z, groups=group):
        for kind in effort.kinds:
            trees = _fit_trees(kind, effort.compared_trees, seed, inputs[fit], z[fit])
            by_tree[kind][left_out] = _predict_by_tree(trees, inputs[left_out], z.shape[1])
        for smooth in effort.smooths:
            model = _make_smooth(smooth, seed).fit(inputs[fit], z[fit])
            by_smooth[smooth][left_out] = model.predict(inputs[left_out]).reshape(-1, z.shape[1])
    if len(effort.kinds) > 1:
        half = effort.compared_trees // 2
        by_tree["both"] = np.concatenate([by_tree[kind][..., :half] for kind in effort.kinds], axis=2)
    best, best_crps = Choice("extra", "ridge", 0.0), np.inf
    for kind, samples in by_tree.items():
        mean = samples.mean(axis=2)
        deviations = np.sort(samples - mean[..., None], axis=2)
        sizes = {exponent: _deviation(samples, exponent) for exponent in EXPONENTS}
        for smooth, predictions in by_smooth.items():
            for weight in WEIGHTS:
                error = z - (1 - weight) * mean - weight * predictions  # (R, K)
                for factor in FACTORS:
                    crps = _crps(factor * deviations, error)
                    if crps < best_crps - 1e-9:
                        best, best_crps = Choice(kind, smooth, weight, "trees", factor), crps
                for exponent, size in sizes.items():
                    crps = _crps_of_residuals(error, size)
                    if crps < best_crps - 1e-9:
                        best, best_crps = Choice(kind, smooth, weight, "residuals", exponent), crps
    # Errors of the best ensemble, also where its noise is that of trees.
    samples = by_tree[best.trees]
    error = z - (1 - best.weight) * samples.mean(axis=2) - best.weight * by_smooth[best.smooth]
    exponent = min(EXPONENTS, key=lambda value: _crps_of_residuals(error, _deviation(samples, value)))
    return best, float(best_crps), Errors(error / _deviation(samples, exponent), exponent)


def _crps_of_residuals(errors: np.ndarray, sizes: np.ndarray) -> float:
    """Mean CRPS of distributions made of all errors (R, K), each in proportion to the row's size (R, K)."""
    levels = np.quantile(errors / sizes, (np.arange(25) + 0.5) / 25, axis=0).T  # (K, 25)
    return _crps(sizes[..., None] * levels, errors)


def _crps(deviations: np.ndarray, errors: np.ndarray) -> float:
    """Mean CRPS of distributions around a prediction.

    Args:
        deviations: (R, K, S) samples minus the prediction, sorted.
        errors: (R, K) targets minus the prediction.
    """
    n = deviations.shape[2]
    # Half the mean distance of two samples, from the sorted deviations.
    half_distance = (deviations * (2 * np.arange(n) - n + 1)).sum(2) / n**2
    return float((np.abs(deviations - errors[..., None]).mean(2) - half_distance).mean())


def _deviation(by_tree: np.ndarray, exponent: float) -> np.ndarray:
    """(R, K) the size of errors, up to a factor: a power of the standard deviation of trees (R, K, T)."""
    return (by_tree.std(axis=2) + LEAST_DEVIATION) ** exponent


def _predict_by_tree(trees: Sequence[Any], inputs: np.ndarray, n_targets: int) -> np.ndarray:
    """(N, K, T) the prediction of each tree."""
    return np.stack([tree.predict(inputs).reshape(-1, n_targets) for tree in trees], axis=2)


def _fit_trees(kind: str, n_trees: int, seed: int, inputs: np.ndarray, z: np.ndarray) -> list[Any]:
    """The trees (T) of a kind of `Choice`, fitted to targets (R, K)."""
    from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor

    kinds = {"extra": [ExtraTreesRegressor], "forest": [RandomForestRegressor]}
    makes = kinds.get(kind) or [*kinds["extra"], *kinds["forest"]]
    models = [make(n_trees // len(makes), random_state=_state(seed)).fit(inputs, _columns(z)) for make in makes]
    return [tree for model in models for tree in model.estimators_]


def _make_smooth(kind: str, seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingRegressor
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import RidgeCV
    from sklearn.multioutput import MultiOutputRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVR

    if kind == "boosting":
        return MultiOutputRegressor(HistGradientBoostingRegressor(random_state=_state(seed)))
    model = RidgeCV(np.logspace(-2, 3, 11)) if kind == "ridge" else MultiOutputRegressor(SVR(C=3, epsilon=0.05))
    return make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler(), model
    )


def _columns(z: np.ndarray) -> np.ndarray:
    """Targets as scikit-learn's trees expect them: (R,) if there is one."""
    return z[:, 0] if z.shape[1] == 1 else z


def _state(seed: int) -> int:
    """A seed that fits into scikit-learn's 32 bits."""
    return derive(seed, "scikit-learn") % 2**32
