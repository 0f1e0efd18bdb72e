"""Teacher: labels synthetic rows of a small table, from which a model that reads rows as text learns.

Such a model needs more examples than a small table has. It can learn from synthetic rows instead: cells of the training
rows, mixed, with labels drawn from an ensemble of regression models, which need few rows. A label is drawn from the
distribution that the ensemble predicts, so that the model learns how uncertain the teacher is.
"""

import time
from collections.abc import Sequence

import numpy as np

from zoo.datamodules.row_text import is_empty, list_columns
from zoo.datamodules.sources.table_rows import Cells
from zoo.datamodules.table_columns import TextColumn, count_decimals, read_column
from zoo.datamodules.teacher_models import Ensemble, TargetScale, TeacherKind
from zoo.errors import UserError
from zoo.training.random_streams import derive

LEAST_MIXED = 0.5  # largest probability that a cell of a synthetic row comes from another row, at the least
COMPARED_ROWS = 1000  # that the table's distances between rows are measured on
JITTER = 0.1  # standard deviation of the noise on numbers, in standard deviations of their column
SMALLEST_TABLE = 10  # rows


class Teacher:
    """An ensemble of regression models fitted to the rows of a table, and synthetic rows of that table.

    Args:
        cells: the table's R rows.
        names: columns from which the targets are predicted.
        targets: (R, K) numbers to predict.
        groups: (R,) rows of one group are not used both to fit and to compare models.
        seed: seed of the models and of all draws; equal arguments give equal models and rows.
        kind: "thorough", or "fast" for fewer models; see `Ensemble`.

    Attributes:
        fit_seconds: time of the fits: of the scores of texts, and of the ensemble.
        most_mixed: largest probability that a cell of a synthetic row comes from another row, from 1/2 to 1: twice the
            share of columns in which a row differs from the closest row of another group, as a new row will.

    Raises:
        UserError: the table has too few rows, or no column with values.
    """

    def __init__(
        self,
        cells: Sequence[Cells],
        names: Sequence[str],
        targets: np.ndarray,
        groups: Sequence[str],
        seed: int,
        kind: TeacherKind = "thorough",
    ) -> None:
        if len(cells) < SMALLEST_TABLE:
            raise UserError(
                f"--data.synthetic_rows needs at least {SMALLEST_TABLE} training rows, not {len(cells)}: set it to 0"
            )
        self._columns = {name: read_column([row.get(name) for row in cells], JITTER) for name in names}
        if all(isinstance(column, TextColumn) and column.is_empty for column in self._columns.values()):
            raise UserError(
                f"--data.synthetic_rows needs a column with values, but {list_columns(names)} "
                f"{'is' if len(names) == 1 else 'are'} empty: set it to 0"
            )
        self._n_rows, self._n_targets, self._seed = *targets.shape, seed
        self._decimals = [
            count_decimals([f"{y!r}".removesuffix(".0") for y in column.tolist()]) for column in targets.T
        ]
        start = time.monotonic()
        # Scores of texts for the training rows come from models that were fitted to other rows.
        z = np.stack([TargetScale(y)(y) for y in targets.T], axis=1)
        inputs = [
            column.fit(z, np.asarray(groups), derive(seed, "texts", name))
            if isinstance(column, TextColumn)
            else column.encode([row.get(name) for row in cells])
            for name, column in self._columns.items()
        ]
        scored = time.monotonic()
        self.ensemble = Ensemble(np.hstack(inputs), targets, groups, derive(seed, "teacher"), kind)
        self.most_mixed = float(np.clip(2 * self._distance(np.asarray(groups)), LEAST_MIXED, 1))
        self.fit_seconds = scored - start, time.monotonic() - scored

    def __str__(self) -> str:
        return str(self.ensemble)

    def predict(self, cells: Sequence[Cells]) -> np.ndarray:
        """(N, K) predictions for N rows."""
        return self.ensemble.predict(self._encode(cells))

    def draw(self, n_rows: int, noise: float = 1.0) -> tuple[list[Cells], np.ndarray]:
        """At most `n_rows` new rows N, and their labels (N, K), the prediction plus `noise` times its noise.

        Each is a random row of the table in which every cell is replaced by the cell of another random row in the same
        column, with a probability that is drawn for the row, from 0 to `most_mixed`; then numbers get some noise. So
        some rows keep the dependence between columns, and others vary it. A row without any value is left out.
        """
        random = np.random.default_rng(derive(self._seed, "synthetic rows"))
        rows = self._mix_cells(n_rows, random)
        if not rows:
            return [], np.empty((0, self._n_targets))
        return rows, self._rounded(self.ensemble.sample(self._encode(rows), random, noise))

    def draw_other(self, n_rows: int) -> list[Cells]:
        """At most `n_rows` rows drawn as in `draw`, but different ones, without labels."""
        return self._mix_cells(n_rows, np.random.default_rng(derive(self._seed, "other synthetic rows")))

    def draw_targets(self, cells: Sequence[Cells], n_draws: int) -> np.ndarray | None:
        """(N, n_draws, K) numbers that N rows, to which the teacher was not fitted, may have.

        None if the table has too few groups to tell how far predictions are from numbers of new rows.
        """
        random = np.random.default_rng(derive(self._seed, "targets of new rows"))
        return self.ensemble.draw_targets(self._encode(cells), n_draws, random)

    def _mix_cells(self, n_rows: int, random: np.random.Generator) -> list[Cells]:
        """At most `n_rows` synthetic rows."""
        base = random.integers(self._n_rows, size=n_rows)
        mixed = random.uniform(0, self.most_mixed, n_rows)
        cells = []
        for column in self._columns.values():
            other = random.integers(self._n_rows, size=n_rows)
            cells.append(column.draw(np.where(random.random(n_rows) < mixed, other, base), random))
        rows = [dict(zip(self._columns, values, strict=True)) for values in zip(*cells, strict=True)]
        return [row for row in rows if not all(map(is_empty, row.values()))]

    def _distance(self, groups: np.ndarray) -> float:
        """The mean share of columns in which a row differs from the closest row of another group; 0 for one group."""
        random = np.random.default_rng(derive(self._seed, "compared rows"))
        rows = random.permutation(self._n_rows)[:COMPARED_ROWS]
        differing: np.ndarray = np.mean([column.differ(rows) for column in self._columns.values()], axis=0)
        differing[groups[rows][:, None] == groups[rows]] = np.inf
        closest = differing.min(axis=1)
        return float(closest[np.isfinite(closest)].mean()) if np.isfinite(closest).any() else 0.0

    def _rounded(self, labels: np.ndarray) -> np.ndarray:
        """Labels (N, K) with one decimal more than the targets have, or with six digits where these have many."""
        columns = [
            [float(f"{y:.6g}") for y in column.tolist()] if decimals is None else column.round(decimals + 1)
            for column, decimals in zip(labels.T, self._decimals, strict=True)
        ]
        return np.array(columns, dtype=np.float64).T

    def _encode(self, cells: Sequence[Cells]) -> np.ndarray:
        """(N, F) the encodings of all columns."""
        return np.hstack([column.encode([row.get(name) for row in cells]) for name, column in self._columns.items()])
