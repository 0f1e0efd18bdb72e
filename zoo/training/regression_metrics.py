"""Metrics of regression over a whole split, exact for ragged batches and several ranks."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from zoo.training.number_range import mean_of, unit_of

RELATIVE = ("relative_mae", "r2", "spearman", "pearson")
"""Scores without a unit, which are undefined where the targets of all rows are equal."""


def scores(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Regression scores of predictions (N, K) for targets (N, K): `average_scores` of `scores_by_target`."""
    return average_scores(scores_by_target(predictions, targets), targets)


@np.errstate(over="ignore", invalid="ignore")  # such a score is infinite or NaN
def scores_by_target(predictions: np.ndarray, targets: np.ndarray) -> list[dict[str, float]]:
    """Regression scores of predictions (N, K) for targets (N, K), for each of the K targets.

    A few very large targets dominate r2 and rmse: do not rely on these two where targets span orders of magnitude.

    Returns:
        "mae" and "median_error", mean and median of |prediction - target|, and "rmse", all in the target's unit; "r2",
        the coefficient of determination; "spearman" and "pearson", correlations; and of several targets "relative_mae",
        the mae divided by that of the median of the same rows' targets: 1 is the error of the best constant prediction.
        A score that is undefined (a constant column, a single row) is NaN.
    """
    from scipy import stats  # here, because importing it takes a second

    columns = []
    for p, t in zip(predictions.T, targets.T, strict=True):
        has_correlation = len(t) > 1 and np.ptp(p) > 0 and np.ptp(t) > 0  # otherwise scipy warns in addition to the NaN
        spearman = stats.spearmanr(p, t).statistic if has_correlation else np.nan
        pearson = stats.pearsonr(*map(_in_unit, (_shifted(p), _shifted(t)))).statistic if has_correlation else np.nan
        scale = unit_of(p, t)  # otherwise squares of very large or small numbers would be infinite or 0
        p, t = p / scale, t / scale
        error, shifted = np.abs(p - t), _shifted(t)
        total = np.square(shifted - shifted.mean()).sum()
        columns.append(
            {
                "mae": scale * float(error.mean()),
                "median_error": scale * float(np.median(error)),
                "rmse": scale * float(np.sqrt(np.square(error).mean())),
                "r2": 1 - np.square(error).sum() / total if np.ptp(t) > 0 else np.nan,
                "spearman": spearman,
                "pearson": pearson,
            }
        )
        if targets.shape[1] > 1:
            of_median = np.abs(t - np.median(t)).mean()
            columns[-1]["relative_mae"] = error.mean() / of_median if of_median > 0 else np.nan
    return [{name: float(score) for name, score in column.items()} for column in columns]


@np.errstate(over="ignore")  # of the range of very large targets
def average_scores(columns: Sequence[Mapping[str, float]], targets: np.ndarray) -> dict[str, float]:
    """The mean of each score over K targets. The scores `RELATIVE` leave out targets that are equal in all rows.

    Args:
        columns: K times the scores of a target.
        targets: (N, K) the targets.
    """
    varying = [column for column, values in zip(columns, targets.T, strict=True) if np.ptp(values) > 0] or columns
    return {
        name: mean_of(np.array([column[name] for column in (varying if name in RELATIVE else columns)]))
        for name in columns[0]
    }


def _shifted(values: np.ndarray) -> np.ndarray:
    """Values (N,), minus the first one if they are nearly constant: rounding of their mean would hide differences."""
    return values - values[0] if np.ptp(values) < 1e-9 * np.abs(values).max() else values


def _in_unit(values: np.ndarray) -> np.ndarray:
    return values / unit_of(values)


def target_labels(names: Sequence[str] | None, n_targets: int) -> list[str]:
    """The names of K targets in metrics: distinct, without line breaks, "objective_1" and so on for those without one.

    Args:
        names: K names of columns, or None.
        n_targets: K.
    """
    labels = [" ".join(name.split()) for name in names or []]
    return [
        labels[k] if k < len(labels) and labels[k] and labels.index(labels[k]) == k else f"objective_{k + 1}"
        for k in range(n_targets)
    ]


class GatheredOutputs(Metric):
    """Named tensors (B, ...), concatenated over all batches and all ranks.

    Args:
        names: the names of the tensors that `update` receives.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, **outputs: Tensor) -> None:
        """Add the tensors of one batch."""
        for name in self.names:
            getattr(self, name).append(outputs[name].detach())

    def compute(self) -> dict[str, np.ndarray]:
        """For each name a float64 array (N, ...)."""
        return {name: dim_zero_cat(getattr(self, name)).double().cpu().numpy() for name in self.names}
