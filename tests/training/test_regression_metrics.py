"""Scores of several targets: each compared with scipy and scikit-learn, and their means."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from scipy import stats
from sklearn import metrics
from torch.utils.data import DataLoader

from zoo.mini_rlm import MiniRLM
from zoo.tokenizers import load_tokenizer
from zoo.training.batches import collate, text_rows
from zoo.training.regression_metrics import average_scores, scores, scores_by_target, target_labels

RANDOM = np.random.default_rng(0)
TARGETS = RANDOM.normal(size=(30, 2)) * [1e6, 1e-3]
PREDICTIONS = TARGETS + RANDOM.normal(size=(30, 2)) * [5e5, 2e-3]


def test_scores_of_each_target_equal_those_of_scipy_and_sklearn():
    for k, column in enumerate(scores_by_target(PREDICTIONS, TARGETS)):
        p, t = PREDICTIONS[:, k], TARGETS[:, k]
        expected = {
            "mae": metrics.mean_absolute_error(t, p),
            "median_error": metrics.median_absolute_error(t, p),
            "rmse": metrics.root_mean_squared_error(t, p),
            "r2": metrics.r2_score(t, p),
            "spearman": stats.spearmanr(p, t).statistic,
            "pearson": stats.pearsonr(p, t).statistic,
            # 1 - d2 is the ratio of the two absolute errors
            "relative_mae": 1 - metrics.d2_absolute_error_score(t, p),
        }
        assert column == pytest.approx(expected, rel=1e-9)


def test_relative_error_of_several_targets_does_not_depend_on_their_units():
    of_targets = scores_by_target(PREDICTIONS, TARGETS)
    mean = scores(PREDICTIONS, TARGETS)
    assert mean["relative_mae"] == pytest.approx(np.mean([column["relative_mae"] for column in of_targets]))
    assert mean["mae"] == pytest.approx(np.mean([column["mae"] for column in of_targets]))
    rescaled = scores(PREDICTIONS * [1e-9, 1e12], TARGETS * [1e-9, 1e12])
    assert rescaled["relative_mae"] == pytest.approx(mean["relative_mae"], rel=1e-12)
    of_one = ["mae", "median_error", "rmse", "r2", "spearman", "pearson"]
    assert list(scores(PREDICTIONS[:, :1], TARGETS[:, :1])) == of_one


def test_a_constant_target_is_left_out_of_the_means_of_scores_without_a_unit():
    targets = np.column_stack([TARGETS[:, 0], np.full(30, 7.0)])
    predictions = np.column_stack([PREDICTIONS[:, 0], np.full(30, 9.0)])
    varying, constant = scores_by_target(predictions, targets)
    assert constant["mae"] == 2
    assert all(math.isnan(constant[n]) for n in ("relative_mae", "r2", "spearman", "pearson"))
    mean = average_scores([varying, constant], targets)
    assert mean["mae"] == (varying["mae"] + 2) / 2
    assert {name: mean[name] for name in ("relative_mae", "r2", "spearman")} == {
        name: varying[name] for name in ("relative_mae", "r2", "spearman")
    }
    # Equal or NaN predictions of a target that varies do not improve a mean: it is undefined as well.
    assert math.isnan(scores(predictions[:, ::-1], np.column_stack([TARGETS[:, 1], TARGETS[:, 0]]))["spearman"])
    broken = np.column_stack([PREDICTIONS[:, 0], np.full(30, np.nan)])
    assert math.isnan(scores(broken, TARGETS)["relative_mae"])
    assert math.isnan(scores(predictions[:1], targets[:1])["relative_mae"])


def test_the_mean_of_numbers_near_the_largest_double_is_finite():
    targets = np.full((2, 2), 1.7e308)
    assert scores(np.zeros((2, 2)), targets)["mae"] == 1.7e308


@pytest.mark.parametrize(
    ("predictions", "targets"),
    [
        (np.arange(12.0), np.where(np.arange(12) % 2, 1.7e308, -1.7e308)),  # in one unit, predictions would be 0
        (1e9 + 1e-6 * np.arange(12) % 5e-6, 1e9 + 1e-6 * np.arange(12)),  # means at 1e9 are rounded by 1e-7
        (1e-200 * np.arange(12) % 5e-200, 1e-200 * np.arange(12)),
    ],
)
@pytest.mark.filterwarnings("error")
def test_scores_of_extreme_numbers_equal_exact_ones(predictions, targets):
    got = scores(predictions[:, None], targets[:, None])
    p, t = ([Fraction(x) for x in values.tolist()] for values in (predictions, targets))
    mean_p, mean_t = sum(p) / 12, sum(t) / 12
    error = sum((a - b) ** 2 for a, b in zip(p, t, strict=True))
    squares_p, squares_t = (sum((x - m) ** 2 for x in v) for v, m in ((p, mean_p), (t, mean_t)))
    product = sum((a - mean_p) * (b - mean_t) for a, b in zip(p, t, strict=True))
    assert got["mae"] == pytest.approx(float(sum(abs(a - b) for a, b in zip(p, t, strict=True)) / 12), rel=1e-12)
    assert got["r2"] == pytest.approx(float(1 - error / squares_t), rel=1e-6, abs=1e-12)
    pearson = float(product**2 / squares_p / squares_t) ** 0.5 * (1 if product > 0 else -1)
    assert got["pearson"] == pytest.approx(pearson, rel=1e-6)
    assert got["spearman"] == pytest.approx(stats.spearmanr(predictions, targets).statistic, rel=1e-12)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.parametrize("unit", [1e60, 1e-60])
def test_errors_beyond_the_range_of_fp32_are_logged(unit, tmp_path):
    tokenizer, targets = load_tokenizer("bytes"), unit * np.arange(8.0)
    torch.manual_seed(0)
    model = MiniRLM(tokenizer=tokenizer, target_scale="standard", dim=8, hidden_dim=8)
    model.fit_scales(targets[:, None])
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=tmp_path, enable_checkpointing=False, **options)
    rows = text_rows([f"x = {i}" for i in range(8)], targets, tokenizer)
    loader = DataLoader(rows, batch_size=8, collate_fn=collate)
    [logged] = trainer.test(model, loader, verbose=False)
    predictions = np.array([row["prediction"] for row in trainer.predict(model, loader)[0]])
    assert logged["test_mae"] == pytest.approx(np.abs(predictions - targets).mean(), rel=1e-12)
    assert logged["test_rmse"] == pytest.approx(np.sqrt(np.square((predictions - targets) / unit).mean()) * unit)


def test_labels_of_targets_are_distinct_and_have_no_line_breaks():
    assert target_labels(["price", "km/h", "a\n b", "a b", " "], 5) == [
        "price", "km/h", "a b", "objective_4", "objective_5"
    ]  # fmt: skip
    assert target_labels(None, 2) == ["objective_1", "objective_2"]
