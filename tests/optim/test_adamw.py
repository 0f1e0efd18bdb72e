"""AdamW against its formula in fp64, fused against plain updates, and resuming from a file."""

import copy
import io
import math

import pytest
import torch

from zoo.errors import UserError
from zoo.optim import AdamW


def problem(dtype=torch.float32):
    """A small regression: parameters, and a function that fills in their gradients."""
    generator = torch.Generator().manual_seed(0)
    x, y, weight = (torch.randn(n, m, generator=generator).to(dtype) for n, m in ((64, 10), (64, 3), (10, 3)))
    weight.requires_grad_()
    bias = torch.zeros(3, dtype=dtype, requires_grad=True)

    def backward():
        weight.grad = bias.grad = None
        (x @ weight + bias - y).pow(2).mean().backward()

    return [weight, bias], backward


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_matches_its_formula(fused, correct_bias, weight_decay):
    parameters, backward = problem(torch.float64)
    lr, beta1, beta2, eps = 3e-3, 0.9, 0.99, 1e-4
    optimizer = AdamW(
        parameters, lr, (beta1, beta2), eps, weight_decay=weight_decay, correct_bias=correct_bias, fused=fused
    )
    reference = [(p.detach().clone(), 0.0, 0.0) for p in parameters]
    for t in range(1, 201):
        backward()
        for i, (p, m, v) in enumerate(reference):
            g = parameters[i].grad
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
            alpha = lr * (math.sqrt(1 - beta2**t) / (1 - beta1**t) if correct_bias else 1)
            p = p - alpha * m / (v.sqrt() + eps)
            reference[i] = p - lr * weight_decay * p, m, v
        optimizer.step()
    for parameter, (expected, _, _) in zip(parameters, reference, strict=True):
        torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("correct_bias", [True, False])
def test_fused_and_plain_updates_agree_in_fp32(correct_bias):
    (plain, backward_plain), (fused, backward_fused) = problem(), problem()
    settings = {"lr": 1e-3, "weight_decay": 0.1, "correct_bias": correct_bias}
    optimizers = AdamW(plain, fused=False, **settings), AdamW(fused, fused=True, **settings)
    for _ in range(100):
        backward_plain(), backward_fused()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(fused, plain, rtol=1e-6, atol=1e-6)


def test_differs_from_torch_where_eps_matters():
    (a, backward_a), (b, backward_b) = problem(), problem()
    zoo, torchs = AdamW(a, 1e-2, eps=1e-2), torch.optim.AdamW(b, 1e-2, eps=1e-2, weight_decay=0)
    for _ in range(5):
        backward_a(), backward_b(), zoo.step(), torchs.step()
    assert not torch.allclose(a[0], b[0], atol=1e-4)


@pytest.mark.parametrize("fused", [None, False])
def test_resume_from_a_file_is_bitwise(fused):
    straight, backward = problem()
    optimizer = AdamW(straight, 1e-2, weight_decay=0.1, fused=fused)
    for _ in range(3):
        backward(), optimizer.step()
    file = io.BytesIO()
    torch.save((copy.deepcopy(straight), optimizer.state_dict()), file)
    file.seek(0)
    saved, state = torch.load(file, weights_only=True)
    resumed, backward_resumed = problem()
    again = AdamW(resumed, fused=fused)
    again.load_state_dict(state)
    with torch.no_grad():
        for parameter, value in zip(resumed, saved, strict=True):
            parameter.copy_(value)
    for _ in range(3):
        backward(), optimizer.step(), backward_resumed(), again.step()
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))


def test_parameters_without_gradients_skip_a_step():
    parameters, backward = problem()
    optimizer = AdamW(parameters, 1e-2)
    backward()
    parameters[1].grad = None
    optimizer.step()
    assert not parameters[1].any()
    backward()
    optimizer.step()
    assert [optimizer.state[p]["step"] for p in parameters] == [2, 1]


def test_gradient_scaler_skips_a_step_with_infinite_gradients():
    parameters, backward = problem()
    assert not getattr(AdamW(parameters), "_step_supports_amp_scaling", False)
    optimizer, scaler = AdamW(parameters, 1e-2), torch.amp.GradScaler("cpu")
    before = [p.detach().clone() for p in parameters]
    backward()
    scaler.scale(torch.ones(()))  # a scaler starts with its first loss
    parameters[0].grad[0, 0] = torch.inf
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": -1.0}, "lr must be at least 0, not -1.0"),
        ({"eps": math.nan}, "eps must be at least 0, not nan"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0"),
        ({"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_raise_user_error(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        AdamW(problem()[0], **settings)


def test_sparse_gradients_and_missing_fused_kernel_raise_user_error():
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(UserError, match="dense gradients"):
        AdamW(embedding.parameters()).step()
    odd = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    odd.grad = torch.ones_like(odd)
    with pytest.raises(UserError, match="fused=True has no kernel"):
        AdamW([odd], fused=True).step()
