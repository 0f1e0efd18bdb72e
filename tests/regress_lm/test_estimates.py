"""Statistics of samples near the largest and the smallest doubles equal those in another unit."""

import numpy as np
import pytest
import torch

from zoo.regress_lm import estimates

RANDOM = np.random.default_rng(0)
SAMPLES, TARGETS = torch.tensor(RANDOM.normal(size=(3, 20, 2))), torch.tensor(RANDOM.normal(size=(3, 2)))


@pytest.mark.parametrize("unit", [2.0**1020, 2.0**-1000])
def test_statistics_of_very_large_and_very_small_samples_are_those_in_another_unit(unit):
    expected = estimates.summary(SAMPLES, torch.zeros(3, 20))
    for name, values in estimates.summary(SAMPLES * unit, torch.zeros(3, 20)).items():
        assert torch.allclose(values / unit, expected[name], rtol=1e-12, atol=0), name
    crps = estimates.crps(SAMPLES * unit, TARGETS * unit) / unit
    assert torch.allclose(crps, estimates.crps(SAMPLES, TARGETS), rtol=1e-12, atol=0)


def test_statistics_of_samples_at_both_ends_of_the_doubles_are_finite():
    samples = torch.tensor([-1.7e308, 1.7e308], dtype=torch.float64).view(1, 2, 1)
    values = estimates.summary(samples, torch.zeros(1, 2))
    assert values["mean"] == values["median"] == 0
    assert values["std"] == pytest.approx(1.7e308)
    assert estimates.crps(samples, torch.zeros(1, 1, dtype=torch.float64)) == pytest.approx(0)


def test_mode_is_the_likeliest_sample_without_nan():
    nan, log_prob = torch.nan, torch.tensor([[-1.0, -2.0, -3.0, -1.5]])

    def mode(*samples):
        return estimates.summary(torch.tensor([samples], dtype=torch.float64), log_prob)["mode"][0].tolist()

    assert mode([4.0], [5.0], [6.0], [7.0]) == [4]
    assert mode([nan], [5.0], [6.0], [7.0]) == [7]
    assert mode([nan, 1], [5, nan], [6, 60], [nan, 2]) == [6, 60]  # the only sample without NaN
    assert mode([nan, 1], [5, nan], [6, nan], [nan, 2]) == [5, 1]  # each objective by itself
    assert np.isnan(mode([nan], [nan], [nan], [nan])).all()


def test_mean_crps_of_a_target_does_not_overflow():
    outputs = {"crps": np.full((3, 1), 1.7e308), "quantiles": np.zeros((3, 1, 5)), "target": np.ones((3, 1))}
    expected = {"crps": 1.7e308, "coverage_50": 0.0, "coverage_90": 0.0}
    assert estimates.scores_of_target(outputs, 0) == pytest.approx(expected)
