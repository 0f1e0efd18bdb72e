"""Figures of regression: limits, aspect, and legends that list what is drawn."""

import numpy as np
import pytest

from zoo.callbacks.regression_figures import calibration, scatter


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_scatter_has_equal_axes_with_the_limits_of_the_targets():
    [axes] = scatter(np.array([1.0, 5.0, 9.0]), np.array([0.0, 4.0, 10.0])).axes
    assert axes.get_aspect() == 1
    assert axes.get_xlim() == axes.get_ylim() == pytest.approx((-1, 11))
    assert legend(axes) == ["prediction", "equal"]


def test_scatter_counts_predictions_outside_the_range_and_draws_them_at_its_edge():
    [axes] = scatter(np.array([1.0, 1e9, -1e9, np.nan]), np.array([0.0, 4.0, 10.0, 3.0])).axes
    assert axes.get_title() == "3 predictions, 2 outside the range shown"
    _, outside = axes.collections
    assert np.allclose(outside.get_offsets(), [[4, 11], [10, -1]])
    assert legend(axes) == ["prediction", "outside", "equal"]


@pytest.mark.filterwarnings("ignore:overflow")  # in matplotlib, at the largest numbers
@pytest.mark.parametrize("targets", [[], [2.0], [0.0], [1e-300, 2e-300], [1e300, -1e300], [np.inf, 1.0], [np.nan]])
def test_scatter_of_few_or_extreme_targets_can_be_saved(targets, tmp_path):
    targets = np.array(targets)
    scatter(targets + 1, targets).savefig(tmp_path / "scatter.png")


def test_calibration_has_equal_axes_and_both_lines_in_its_legend():
    [axes] = calibration(np.array([0.1, 0.6])).axes
    assert axes.get_aspect() == 1
    assert legend(axes) == ["model", "calibrated"]
