"""Chunked cross-entropy against torch's: value and gradients."""

import pytest
import torch
import torch.nn.functional as F

from zoo.layers import linear_nll as module
from zoo.layers.linear_nll import linear_nll


@pytest.fixture
def problem():
    hidden = torch.randn(37, 16, requires_grad=True)
    weight = (torch.randn(50, 16) * 0.3).requires_grad_()
    targets = torch.randint(50, (37,))
    targets[::5] = -100
    return hidden, weight, targets


@pytest.mark.parametrize("rows", [1, 8, 100])
def test_equals_cross_entropy_for_any_chunk_size(problem, monkeypatch, rows):
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", rows * 4 * 50)
    hidden, weight, targets = problem
    loss, expected = linear_nll(*problem), F.cross_entropy(F.linear(hidden, weight), targets)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(3 * loss, (hidden, weight))
    theirs = torch.autograd.grad(3 * expected, (hidden, weight))
    torch.testing.assert_close(ours, theirs)


def test_no_scored_target_gives_zero_loss_and_gradients(problem):
    hidden, weight, targets = problem
    loss = linear_nll(hidden, weight, torch.full_like(targets, -100))
    loss.backward()
    assert loss == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_no_grad_gives_the_same_value(problem):
    loss = linear_nll(*problem)
    with torch.no_grad():
        assert torch.equal(linear_nll(*problem), loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_small_gradients_under_loss_scaling(problem, dtype):
    hidden, weight, targets = problem
    with torch.autocast("cpu", dtype=dtype):
        loss = linear_nll(*problem)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(F.linear(hidden, weight), targets)
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)
    # A loss scale of 2^16, as with fp16, must not overflow, and small gradients must survive.
    ours = torch.autograd.grad(loss * 65536, (hidden, weight))
    theirs = torch.autograd.grad(expected, (hidden, weight))
    for a, b in zip(ours, theirs, strict=True):
        assert (a / 65536 - b).norm() < 2e-2 * b.norm()
