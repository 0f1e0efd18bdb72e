"""Sizes of the training data whose preparation fits into a given time, from the measured time of a few rows."""

import time
from collections.abc import Callable, Sequence
from importlib import import_module
from random import Random
from typing import NamedTuple

import numpy as np

from zoo.datamodules.augment import Augmentation
from zoo.datamodules.row_text import RowLayout
from zoo.datamodules.sources.table_rows import Cells
from zoo.datamodules.teacher import Teacher
from zoo.datamodules.teacher_models import TeacherKind
from zoo.training.random_streams import derive

TRIAL = 300  # rows of the trial; fewer in smaller tables
LEAST = 1000  # with fewer synthetic rows than these the training rows alone are as good
# Times of the thorough teacher as multiples of those of the fast one: of its ensemble, and of a synthetic row. Measured
# on tables of 300, 1,000 and 3,000 rows as 8, 14 and 13, which includes different growth with the rows, and 2.1 to 2.5.
FIT, DRAW = 8.0, 2.5
SAFETY = 1.5  # the tokenizer and the tokens of all texts are not measured
# Parts of scikit-learn that a teacher uses.
IMPORTED = (
    "ensemble", "feature_extraction.text", "impute", "linear_model", "model_selection", "multioutput", "pipeline",
    "preprocessing", "svm",
)  # fmt: skip


class TrainingTable(NamedTuple):
    """The training rows of a table.

    Args:
        cells: its R rows.
        layout: roles of the columns.
        targets: (R, K).
        groups: (R,).
    """

    cells: Sequence[Cells]
    layout: RowLayout
    targets: np.ndarray
    groups: Sequence[str]

    def teacher(self, seed: int, kind: TeacherKind, indices: np.ndarray | None = None) -> Teacher:
        """The teacher that is fitted to all rows, or to those of the given indices."""
        used = range(len(self.cells)) if indices is None else indices.tolist()
        cells, groups = [self.cells[i] for i in used], [self.groups[i] for i in used]
        return Teacher(cells, self.layout.columns, self.targets[list(used)], groups, seed, kind)


class TeacherPlan(NamedTuple):
    """Synthetic rows that there is time for.

    Args:
        kind: the teacher that labels them.
        rows: their number; 0 where the time does not suffice for enough of them.
    """

    kind: TeacherKind
    rows: int


def plan_teacher(
    table: TrainingTable, most: int, seconds: float, seed: int, rounded_texts: Callable[[list[str]], list[str]]
) -> TeacherPlan:
    """The teacher, and the number of synthetic rows, for which there is time.

    A fast teacher is fitted to at most 300 rows, and labels as many synthetic rows; the time of both is extrapolated.

    Args:
        table: the training rows, at least 10.
        most: synthetic rows where time does not matter.
        seconds: seconds for the fit of the teacher and for the synthetic rows.
        seed: seed of the teacher.
        rounded_texts: what happens to texts before they are tokenized.
    """
    n_rows = len(table.cells)
    n_trial = min(n_rows, TRIAL)
    chosen = np.sort(np.random.default_rng(derive(seed, "trial")).permutation(n_rows)[:n_trial])
    for name in IMPORTED:  # not a part of the measured time
        import_module(f"sklearn.{name}")
    teacher = table.teacher(seed, "fast", chosen)
    start = time.monotonic()
    cells, _ = teacher.draw(TRIAL)
    rounded_texts([table.layout.text(row) for row in cells])
    per_row = SAFETY * max(time.monotonic() - start, 1e-6) / TRIAL
    texts, ensemble = (SAFETY * seconds_of_trial * n_rows / n_trial for seconds_of_trial in teacher.fit_seconds)
    if texts + FIT * ensemble + DRAW * per_row * most <= seconds:
        return TeacherPlan("thorough", most)
    rows = int(min(most, (seconds - texts - ensemble) / per_row))
    return TeacherPlan("fast", rows if rows >= min(LEAST, most) else 0)


def plan_copies(
    texts: Sequence[str],
    change: Augmentation,
    most: int,
    seconds: float,
    rounded_texts: Callable[[list[str]], list[str]],
) -> int:
    """The number of changed copies of all texts, at most `most`, that are made in some seconds.

    Args:
        texts: texts of the training rows.
        change: makes a copy of a text.
        most: copies where time does not matter.
        seconds: seconds for all copies.
        rounded_texts: what happens to texts before they are tokenized.
    """
    sample = list(texts[:TRIAL])
    start = time.monotonic()
    rounded_texts([change(text, Random(i)) for i, text in enumerate(sample)])
    per_copy = SAFETY * max(time.monotonic() - start, 1e-6) * len(texts) / len(sample)
    return int(min(most, seconds / per_copy))
