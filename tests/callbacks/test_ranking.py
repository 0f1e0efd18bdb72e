"""Ranking scores and the figures of regression: correct values, ties, rows without targets."""

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zoo.callbacks import Plots, regression_figures
from zoo.callbacks.ranking import best_found, best_found_at_random, ranked, top_k_recall, top_k_recall_at_random
from zoo.errors import UserError

TARGETS = np.array([3.0, 1.0, 4.0, 1.5, 9.0])
PREDICTIONS = np.array([2.0, 3.0, 1.0, 2.5, 8.0])  # order of the rows: 2, 0, 3, 1, 4


def test_values_of_a_small_example():
    assert ranked(PREDICTIONS, "min").tolist() == [2, 0, 3, 1, 4]
    assert ranked(PREDICTIONS, "max").tolist() == [4, 1, 3, 0, 2]
    assert top_k_recall(PREDICTIONS, TARGETS) == pytest.approx([0, 0, 2 / 3, 1, 1])
    assert top_k_recall(PREDICTIONS, TARGETS, "max") == pytest.approx([1, 1 / 2, 1 / 3, 3 / 4, 1])
    assert best_found(PREDICTIONS, TARGETS).tolist() == [4, 3, 1.5, 1, 1]
    assert best_found(PREDICTIONS, TARGETS, "max").tolist() == [9, 9, 9, 9, 9]


@pytest.mark.parametrize("best", ["min", "max"])
def test_values_equal_the_definitions(best):
    random, sign = np.random.default_rng(0), 1 if best == "min" else -1
    targets, predictions = random.integers(0, 6, 8).astype(float), random.normal(size=8)
    losses, order = sign * targets, np.argsort(sign * predictions)
    recall = [(losses[order[:k]] <= np.sort(losses)[k - 1]).mean() for k in range(1, 9)]
    assert top_k_recall(predictions, targets, best) == pytest.approx(recall)
    # Expectations of a random order, over all subsets.
    expected = [np.mean([sign * min(c) for c in combinations(losses, k)]) for k in range(1, 9)]
    assert best_found_at_random(targets, best) == pytest.approx(expected)
    assert best_found_at_random(targets, best, [2, 8]) == pytest.approx([expected[1], expected[7]])
    among = [(losses <= np.sort(losses)[k - 1]).mean() for k in range(1, 9)]
    assert top_k_recall_at_random(targets, best) == pytest.approx(among)


def test_equal_predictions_do_not_follow_the_order_of_the_rows():
    """On sorted data a constant prediction would otherwise find the best rows first."""
    targets, constant = np.arange(1000.0), np.zeros(1000)
    assert top_k_recall(constant, targets)[99] == pytest.approx(0.1, abs=0.06)
    assert best_found(constant, targets)[0] > 0


def test_unusable_numbers_are_refused():
    for predictions, targets, best, message in (
        (PREDICTIONS[:2], TARGETS, "min", "a ranking needs"),
        (TARGETS[:0], TARGETS[:0], "min", "a ranking needs"),
        (PREDICTIONS, np.array([1, 2, np.nan, 3, 4]), "min", "one of them is NaN"),
        (PREDICTIONS, TARGETS, "low", "best must be"),
    ):
        with pytest.raises(UserError, match=message):
            top_k_recall(predictions, targets, best)
    with pytest.raises(UserError, match="from 1 to 5"):
        best_found_at_random(TARGETS, "min", [6])
    with pytest.raises(UserError, match=r"plots\.ranking"):
        Plots(ranking="low")


def lines(axes) -> dict[str, list[float]]:
    return {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.get_lines()}


def test_ranking_figure_shows_each_objective_without_rows_of_unknown_numbers():
    nan = np.full(1, np.nan)
    predictions = np.stack([np.concatenate([PREDICTIONS, nan]), np.concatenate([-PREDICTIONS, nan])], 1)
    targets = np.stack([np.concatenate([TARGETS, [0.0]]), np.concatenate([TARGETS, [0.0]])], 1)
    axes = regression_figures.ranking(predictions, targets, "min").axes
    assert lines(axes[0])["predictions"] == pytest.approx([0, 0, 2 / 3, 1, 1])
    assert lines(axes[1])["predictions"] == [4, 3, 1.5, 1, 1]
    assert lines(axes[1])["random order"] == pytest.approx(best_found_at_random(TARGETS))
    assert lines(axes[1])["oracle"] == [1, 1]
    assert lines(axes[3])["predictions"] == [9, 1, 1, 1, 1]
    regression_figures.ranking(predictions[-1:], targets[-1:])  # no row is left


def test_intervals_figure_is_sorted_by_target():
    column = TARGETS[:, None]
    figure = regression_figures.intervals(
        PREDICTIONS[:, None], column, column - 1, column + np.array([[1], [1], [1], [-0.5], [1]])
    )
    [axes] = figure.axes
    assert lines(axes)["target"] == sorted(TARGETS)
    assert lines(axes)["prediction"] == PREDICTIONS[np.argsort(TARGETS)].tolist()
    assert "80% within 25% to 75%" in axes.get_title()
    [axes] = regression_figures.intervals(PREDICTIONS[:, None], column, None, None).axes
    assert axes.get_title() == "5 rows"


def test_outputs_of_batches_and_of_rows_give_the_same_columns():
    batch = {
        "prediction": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "target": torch.tensor([[5.0, 6.0], [7.0, 8.0]]),
        "quantiles": torch.arange(20.0).view(2, 2, 5),
    }
    rows = [
        {"prediction": [1.0, 2.0], "target": [5.0, 6.0], "quantiles": {"0.25": [1.0, 6.0], "0.75": [3.0, 8.0]}},
        {"prediction": [3.0, 4.0], "target": [7.0, 8.0], "quantiles": {"0.25": [11.0, 16.0], "0.75": [13.0, 18.0]}},
        {"prediction": [0.0, 0.0], "quantiles": {"0.25": [0.0, 0.0], "0.75": [0.0, 0.0]}},  # no target
    ]
    columns = []
    for outputs in (batch, rows):
        plots = Plots(intervals=True)
        plots._collect(outputs)
        columns.append({name: np.concatenate(parts).tolist() for name, parts in plots._columns.items()})
    assert columns[0] == columns[1]
    assert columns[0]["low"] == [[1.0, 6.0], [11.0, 16.0]]


def test_figures_of_rows_without_targets_are_named(tmp_path):
    plots = Plots(ranking="min")
    trainer = SimpleNamespace(
        state=SimpleNamespace(fn=SimpleNamespace(value="predict")), default_root_dir=tmp_path, is_global_zero=True,
        callbacks=[],
    )  # fmt: skip
    plots.on_predict_batch_end(trainer, None, [{"prediction": 1.0}])
    with pytest.warns(
        UserWarning, match=r"--plots.ranking draws nothing: no row has both a target and a predicted number"
    ):
        plots.on_predict_end(trainer, None)
    assert not list(tmp_path.iterdir())


def test_the_largest_of_unsigned_integers_are_the_best():
    values = np.array([0, 200, 7], dtype=np.uint8)
    for target in (values, values.astype(np.float64)):
        assert ranked(target, "max").tolist() == [1, 2, 0]
        assert best_found(target, target, "max").tolist() == [200, 200, 200]
        assert top_k_recall(target, target, "max").tolist() == [1, 1, 1]
        assert best_found_at_random(target, "max").tolist() == pytest.approx([69, 200 * 2 / 3 + 7 / 3, 200])
