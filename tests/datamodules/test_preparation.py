"""Data prepared within a time: the number of synthetic rows and copies, the fast teacher."""

import csv

import numpy as np
import pytest

from zoo.datamodules import Reviews, TextRegression, preparation, teacher_models
from zoo.datamodules.preparation import DRAW, FIT, SAFETY, TRIAL, TeacherPlan
from zoo.datamodules.teacher import Teacher
from zoo.datamodules.teacher_models import Effort
from zoo.errors import UserError

SEED = 0


def rows(n):
    random = np.random.default_rng(SEED)
    x = random.random((n, 2)).round(3)
    return [{"a": f"{a}", "b": f"{b}"} for a, b in x], (10 * x[:, :1] + 5 * (x[:, 1:] > 0.5))


@pytest.fixture
def data(tmp_path):
    cells, targets = rows(100)
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("a", "b", "y"), *((c["a"], c["b"], y) for c, [y] in zip(cells, targets, strict=True))]
        )
    return TextRegression(str(tmp_path / "table.csv"), target_columns="y", tokenizer="words", seed=SEED)


def clock(monkeypatch, *readings):
    times = iter(readings)
    monkeypatch.setattr(preparation.time, "monotonic", lambda: next(times))


@pytest.mark.parametrize("seconds", [1e6, 100.0, 20.0, 2.0])
def test_synthetic_rows_fit_into_the_time(data, monkeypatch, seconds):
    monkeypatch.setattr(teacher_models, "FAST_TREES", 5)
    monkeypatch.setattr(teacher_models, "FAST_COMPARED_TREES", 5)
    # 0.4 s for the scores of texts of all 80 rows, 0.6 s for the ensemble, 0.6 s for 300 synthetic rows.
    clock(monkeypatch, 0.0, 0.4, 1.0, 5.0, 5.6)
    plan = data.plan_synthetic_rows(20_000, seconds)
    texts, ensemble, per_row = SAFETY * 0.4, SAFETY * 0.6, SAFETY * 0.6 / TRIAL
    if seconds >= texts + FIT * ensemble + DRAW * per_row * 20_000:
        assert plan == TeacherPlan("thorough", 20_000)
    elif seconds == 2.0:  # for 166 rows
        assert plan == TeacherPlan("fast", 0)
    else:
        assert plan.kind == "fast"
        assert plan.rows == pytest.approx(min(20_000, (seconds - texts - ensemble) / per_row), abs=1)


def test_copies_fit_into_the_time(data, monkeypatch):
    clock(monkeypatch, 0.0, 0.2, 10.0, 10.2)
    assert data.plan_copies({"jitter": 0.1}, 50, 3.01) == 10  # 0.2 s for the copy of 80 rows, 0.3 s with the margin
    assert data.plan_copies({"jitter": 0.1}, 5, 3.0) == 5


def test_fast_teacher_labels_with_the_function_of_the_table():
    cells, targets = rows(300)
    teacher = Teacher(cells[:200], ["a", "b"], targets[:200], [str(i) for i in range(200)], SEED, "fast")
    errors = teacher.predict(cells[200:]) - targets[200:]
    assert np.abs(errors).mean() < 0.25 * np.abs(targets - np.median(targets)).mean()
    assert teacher.draw_targets(cells[200:203], 4).shape == (3, 4, 1)
    assert Effort.of("fast", 10**6).smooths == ("ridge",)
    assert "boosting" in Effort.of("thorough", 10**6).smooths


def test_teacher_is_checked_and_used(data, tmp_path):
    with pytest.raises(UserError, match=r"--data.teacher must be .*'slow'"):
        TextRegression(str(tmp_path / "table.csv"), target_columns="y", teacher="slow")
    fast = TextRegression(**{**data.hparams, "teacher": "fast", "synthetic_rows": 50})
    assert fast.source.teacher(SEED).ensemble.choice.smooth == "ridge"
    texts, targets = fast.source.synthetic(SEED)
    assert len(texts) == len(targets) == 50


def test_given_arguments_are_known_also_where_they_are_the_defaults(tmp_path):
    data = TextRegression("table.csv", "bytes", synthetic_rows=0, text_column=None)
    assert data.given_arguments == {"data", "tokenizer", "synthetic_rows", "text_column"}
    assert Reviews(data="rows.csv", stratified=False).given_arguments == {"data", "stratified"}
    assert TextRegression().given_arguments == set()
