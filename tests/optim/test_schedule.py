"""Learning-rate schedules."""

import pytest
import torch

from zoo.optim import triangle, warmup_cosine


def test_warmup_cosine_rises_falls_and_stays_at_its_minimum():
    values = [warmup_cosine(step, 10, 100, 0.1) for step in range(120)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == 1
    assert values[54] == pytest.approx(0.55)  # half way down
    assert values[99:] == pytest.approx([0.1] * 21)
    assert values[9:100] == sorted(values[9:100], reverse=True)


def test_warmup_cosine_with_few_steps():
    assert warmup_cosine(0, 0, 1) == pytest.approx(0.1)
    assert warmup_cosine(0, 1, 1) == 1
    assert warmup_cosine(3, 5, 2) == pytest.approx(0.8)  # a run shorter than its warm-up


def test_warmup_cosine_in_lambda_lr():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, 2, 4, 0.0))
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1.0, 2.0, 1.0, 0.0])


def test_triangle_rises_and_falls():
    values = [triangle(step, 4, 8) for step in range(10)]
    assert values == pytest.approx([0.25, 0.5, 0.75, 1, 0.8, 0.6, 0.4, 0.2, 0, 0])
    assert sum(triangle(step, 250, 500) for step in range(500)) == pytest.approx(250.5)  # the mean factor is one half


def test_triangle_with_few_steps():
    assert [triangle(step, 0, 2) for step in range(3)] == pytest.approx([2 / 3, 1 / 3, 0])
    assert triangle(3, 5, 2) == pytest.approx(0.8)  # a run shorter than its warm-up
    assert triangle(7, 5, 5) == 1  # no step left after the warm-up
