"""Principal components of the checkpoints' gradients, and a regression of the OOD score on them."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.errors import UserError
from zoo.icr.analysis.gradients import PARTS
from zoo.text_formats.json_text import parse_json
from zoo.text_formats.text_file import read_text

ALPHAS = np.logspace(-3, 4, 15)  # penalties from which the ridge regression chooses


class Table(NamedTuple):
    """The rows of a gradients.json as arrays."""

    rows: list[dict[str, Any]]  # M and step of each checkpoint
    names: list[str]  # names of the columns
    gradients: np.ndarray  # (n, 4D + 2)
    scores: np.ndarray  # (n,) the OOD score of each


def read(path: Path) -> Table:
    """Read the gradients.json at `path`, a file or its folder.

    Raises:
        UserError: the file is something else, has fewer than 3 checkpoints, or all checkpoints are equal.
    """
    path = path / "gradients.json" if path.is_dir() else path
    try:
        rows = parse_json(read_text(path))["checkpoints"]
        # One column for each component of the gradient, and one row for each checkpoint.
        columns = {f"{part}[{i}]": (part, i) for part in PARTS for i in range(len(rows[0]["gradients"][part]))}
        gradients = np.array([[row["gradients"][part][i] for part, i in columns.values()] for row in rows], float)
        scores = np.array([row["ood_score"] for row in rows], float)
        rows = [{"M": row["M"], "step": row["step"]} for row in rows]
    except (OSError, ValueError, LookupError, TypeError) as error:
        command = "python -m zoo.icr.analysis gradients"
        raise UserError(f"{path} is not a gradients.json: make one from a sweep with `{command}`") from error
    # Both analyses need several checkpoints that differ.
    if len(rows) < 3:
        raise UserError(f"{path} has {len(rows)} of the at least 3 checkpoints that this takes: save more of them")
    if not np.ptp(scores) or not np.ptp(gradients, 0).any():
        raise UserError(f"the checkpoints of {path} are all the same: there is nothing to explain")
    return Table(rows, list(columns), gradients, scores)


def pca(table: Table) -> dict[str, Any]:
    """The first two principal components of the gradients, whose columns are first scaled to mean 0 and variance 1.

    Returns:
        "explained": each component's share of the variance. "explained_if_even": the share if all were equal.
        "components": the weights of the columns in the first two. "checkpoints": each one's `place` in these two.
    """
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Standardize the columns, so that no part dominates by its unit, and project on the components.
    components = PCA(svd_solver="full")
    places = make_pipeline(StandardScaler(), components).fit_transform(table.gradients)[:, :2]
    return {
        "explained": components.explained_variance_ratio_.tolist(),
        "explained_if_even": 1 / min(len(table.rows) - 1, len(table.names)),
        "components": [dict(zip(table.names, c.tolist(), strict=True)) for c in components.components_[:2]],
        "checkpoints": [row | {"place": place.tolist()} for row, place in zip(table.rows, places, strict=True)],
    }


def regression(table: Table) -> dict[str, Any]:
    """Ridge regression of the OOD score on the gradients, whose columns are scaled as in `pca`.

    R2 is 1 - sum (y - prediction)^2 / sum (y - mean y)^2.

    Returns:
        "r2_in_sample"; "r2_leave_one_out", where each checkpoint is predicted from all others, including scaling and
        penalty; "r2_leave_one_M_out", where the checkpoints of each M are predicted from those of the other M (None for
        fewer than 3 different M), because successive checkpoints of one training are nearly equal; "r2_constant", the
        leave-one-out R2 of the mean, 1 - (n / (n - 1))^2 < 0, the baseline; and the fitted regression.
    """
    from sklearn.dummy import DummyRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score
    from sklearn.model_selection import LeaveOneGroupOut, LeaveOneOut, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # Ridge regression on standardized columns; RidgeCV chooses the penalty among ALPHAS.
    X, y, M = table.gradients, table.scores, [str(row["M"]) for row in table.rows]
    model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS))
    # Predict each checkpoint, and each M, from a fit to the others.
    left_out = cross_val_predict(model, X, y, cv=LeaveOneOut())
    several = len(set(M)) >= 3
    by_M = cross_val_predict(model, X, y, groups=M, cv=LeaveOneGroupOut()) if several else None
    # The fit to all checkpoints, of which the coefficients are reported.
    inside = model.fit(X, y).predict(X)
    return {
        "r2_in_sample": r2_score(y, inside),
        "r2_leave_one_out": r2_score(y, left_out),
        "r2_leave_one_M_out": None if by_M is None else r2_score(y, by_M),
        "r2_constant": r2_score(y, cross_val_predict(DummyRegressor(), X, y, cv=LeaveOneOut())),
        "alpha": float(model[-1].alpha_),
        "intercept": float(model[-1].intercept_),
        "coefficients": dict(zip(table.names, model[-1].coef_.tolist(), strict=True)),
        "checkpoints": [
            row | {"ood_score": float(true), "predicted": float(out), "predicted_in_sample": float(fitted)}
            for row, true, out, fitted in zip(table.rows, y, left_out, inside, strict=True)
        ],
    }
