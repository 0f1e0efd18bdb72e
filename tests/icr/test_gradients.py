"""The gradient of the expected loss, compared with closed forms, the score function and finite differences."""

import math

import pytest
import torch

from tests.icr.score_function import score_function
from zoo.icr import ICRegConfig, ridge
from zoo.icr.analysis import gradients
from zoo.icr.analysis.gradients import losses, normals, parts, prior, reparameterised
from zoo.icr.model import Network
from zoo.icr.task import Task

TASK = Task(D=2, K=3, sigma2=0.25, M="inf")
ELSEWHERE = torch.tensor([0.3, -0.5, 1.2, 0.7, 0.8, -0.4, 0.6, 1.1, 0.2, 0.5])  # D = 2, in the order of PARTS


def within(estimate, expected, errors=4.0):
    assert ((estimate.value - expected).abs() <= errors * estimate.error + 1e-6).all(), (estimate, expected)


def zero_loss(parameters):
    """The expected loss of the predictor 0 and its gradient in closed form: E[(w . x + e)^2]."""
    mx, sx, mw, sw, me, se = (part.double() for part in parts(parameters).values())
    both = mw @ mx + me  # E[w . x + e]
    loss = both**2 + (mw**2 * sx**2 + sw**2 * mx**2 + sw**2 * sx**2).sum() + se**2
    by_x = 2 * both * mw + 2 * sw**2 * mx, 2 * sx * (mw**2 + sw**2)
    by_task = 2 * both * mx + 2 * sx**2 * mw, 2 * sw * (mx**2 + sx**2)
    return loss, torch.cat([*by_x, *by_task, 2 * both, 2 * se])


@pytest.mark.parametrize("estimator", [reparameterised, score_function])
@pytest.mark.parametrize("parameters", [prior(TASK), ELSEWHERE])
def test_closed_form_for_the_predictor_0(estimator, parameters):
    loss, gradient = estimator(lambda x, y: torch.zeros_like(y), parameters, normals(TASK, 20000, 0))
    expected = zero_loss(parameters)
    within(loss, expected[0])
    within(gradient, expected[1])
    assert (gradient.error < 0.2).all()  # otherwise any value would agree


@pytest.mark.parametrize("estimator", [reparameterised, score_function])
def test_closed_form_for_a_linear_predictor(estimator):
    """The predictor v . x has the errors of the predictor 0 on tasks with another mean."""
    v = torch.tensor([0.9, -0.3])
    loss, gradient = estimator(lambda x, y: x @ v, ELSEWHERE, normals(TASK, 20000, 1))
    shifted = ELSEWHERE.clone()
    shifted[4:6] -= v
    expected = zero_loss(shifted)
    within(loss, expected[0])
    within(gradient, expected[1])


def test_both_estimators_agree_for_ridge():
    def model(x, y):
        return ridge(x, y, 0.25)

    for parameters in (prior(TASK), ELSEWHERE):
        loss, gradient = reparameterised(model, parameters, normals(TASK, 20000, 0))
        other_loss, other = score_function(model, parameters, normals(TASK, 20000, 1))
        assert abs(loss.value - other_loss.value) < 4 * math.hypot(loss.error, other_loss.error)
        apart = (gradient.value - other.value) / (gradient.error**2 + other.error**2).sqrt()
        assert apart.abs().max() < 4
        assert gradient.error.mean() < 0.7 * other.error.mean()  # lower variance


def test_finite_differences_of_a_transformer():
    config = ICRegConfig(D=2, K=3, sigma2=0.25, d_model=16, d_mlp=16, n_heads=2, n_layers=1)
    network = Network(config).double()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(10)
    network.requires_grad_(False)
    draws = gradients.Normals(*(part.double() for part in normals(config, 50, 0)))
    at, h = ELSEWHERE.double(), 1e-5

    def loss(parameters):
        return losses(network, parameters.expand(50, -1), draws).mean().item()

    expected = [(loss(at + h * e) - loss(at - h * e)) / (2 * h) for e in torch.eye(10, dtype=torch.float64)]
    value, _ = reparameterised(network, at, draws)[1]
    assert value.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    answer = reparameterised(lambda x, y: 0 * y, at, draws)[1].value
    assert (value - answer).abs().max() > 0.1  # the transformer's predictions have an influence


def test_standard_errors_equal_the_deviation_of_repeated_estimates():
    repeated = [reparameterised(lambda x, y: 0 * y, ELSEWHERE, normals(TASK, 100, seed))[1] for seed in range(200)]
    values, errors = (torch.stack(column) for column in zip(*repeated, strict=True))
    assert (values.std(0) / errors.mean(0)).tolist() == pytest.approx([1.0] * 10, abs=0.2)


def test_batch_size_does_not_change_the_estimate(monkeypatch):
    def measure():
        return reparameterised(lambda x, y: ridge(x, y, 0.25), ELSEWHERE, normals(TASK, 50, 0))

    whole = measure()
    monkeypatch.setattr(gradients, "BATCH", 7)
    torch.testing.assert_close(measure(), whole)


def test_all_pairs_of_a_prompt_share_one_task():
    """With constant x and no noise all y of a prompt are equal."""
    seen = []
    fixed = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0])
    losses(lambda x, y: seen.append(y) or y, fixed.expand(5, -1), normals(TASK, 5, 0))
    assert torch.equal(seen[0], seen[0][:, :1].expand(5, 3))
    assert len(seen[0][:, 0].unique()) == 5
