"""Metrics of regression over a whole split, exact for ragged batches and several ranks."""

import numpy as np
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from zoo.training.number_range import unit_of


@np.errstate(over="ignore", invalid="ignore")  # such a score is infinite or NaN
def scores(predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Regression scores of predictions (N, K) for targets (N, K), each averaged over the K objectives.

    A few very large targets dominate r2 and rmse: do not rely on these two where targets span orders of magnitude.

    Returns:
        "mae" and "median_error", mean and median of |prediction - target|, and "rmse", all in the targets' unit; "r2",
        the coefficient of determination; "spearman" and "pearson", correlations. A score that is undefined (a constant
        column, a single row) is NaN.
    """
    from scipy import stats  # here, because importing it takes a second

    columns = []
    for p, t in zip(predictions.T, targets.T, strict=True):
        scale = unit_of(p, t)  # otherwise squares of very large or small numbers would be infinite or 0
        p, t = p / scale, t / scale
        error = np.abs(p - t)
        has_correlation = len(t) > 1 and np.ptp(p) > 0 and np.ptp(t) > 0  # otherwise scipy warns in addition to the NaN
        columns.append(
            {
                "mae": scale * float(error.mean()),
                "median_error": scale * float(np.median(error)),
                "rmse": scale * float(np.sqrt(np.square(error).mean())),
                "r2": 1 - np.square(error).sum() / np.square(t - t.mean()).sum() if np.ptp(t) > 0 else np.nan,
                "spearman": stats.spearmanr(p, t).statistic if has_correlation else np.nan,
                "pearson": stats.pearsonr(p, t).statistic if has_correlation else np.nan,
            }
        )
    return {name: float(np.mean([column[name] for column in columns])) for name in columns[0]}


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
