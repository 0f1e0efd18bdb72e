"""`solve` under transforms, second derivatives, compilation and inference mode."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap

from tests.revdeq.functions import METHODS, Function, draw
from zoo.errors import UserError
from zoo.revdeq import solve


def test_unroll_works_under_transforms_and_other_methods_refuse():
    f, x, tangent = Function(), draw(3, 6), draw(3, 6, seed=1)
    parameters = {name: p.detach() for name, p in f.named_parameters()}

    def loss(parameters, x, backward="unroll"):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.f = f

            def forward(self, x):
                return solve(self.f, x, backward=backward, max_steps=5).z.square().sum()

        return functional_call(Model(), {f"f.{name}": p for name, p in parameters.items()}, (x,))

    solve(f, x, max_steps=5).z.square().sum().backward()
    got = grad(loss)(parameters, x)
    for name, p in f.named_parameters():
        torch.testing.assert_close(got[name], p.grad)
    # Per-sample gradients sum to that of the batch, and a directional derivative is the product with the gradient.
    each = vmap(grad(loss), (None, 0))(parameters, x[:, None])
    torch.testing.assert_close(each["up.weight"].sum(0), f.up.weight.grad)
    x_grad = torch.autograd.grad(solve(f, x.requires_grad_(), max_steps=5).z.square().sum(), x)[0]
    x = x.detach()
    torch.testing.assert_close(jvp(lambda x: loss(parameters, x), (x,), (tangent,))[1], (x_grad * tangent).sum())
    own = dict(f.named_parameters())
    for backward in METHODS:
        with pytest.raises(UserError, match=f"backward={backward} does not work under torch.func.grad"):
            grad(loss)(parameters, x, backward)
        refused = partial(loss, own, backward=backward)
        with pytest.raises(UserError, match="or forward-mode derivatives: set backward=unroll"):
            jvp(refused, (x,), (tangent,))
        with pytest.raises(UserError, match="or forward-mode derivatives: set backward=unroll"):
            vmap(refused)(x[:, None])


@pytest.mark.parametrize("backward", ["reversible", "implicit"])
def test_second_derivatives_are_refused_and_retained_graphs_repeat(backward):
    f, x = Function(), draw(3, 6).requires_grad_()
    z = solve(f, x, backward=backward).z
    first, second = (torch.autograd.grad(z.square().sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(UserError, match=f"backward={backward} has no second derivatives"):
        torch.autograd.grad(z.square().sum(), x, create_graph=True)


@pytest.mark.parametrize("backward", ["unroll", "checkpoint"])
def test_second_derivatives_equal_central_differences(backward):
    f, x, direction = Function(), draw(3, 6).requires_grad_(), draw(3, 6, seed=1)

    def first(x):
        return torch.autograd.grad(solve(f, x, backward=backward).z.square().sum(), x, create_graph=True)[0]

    (got,) = torch.autograd.grad((first(x) * direction).sum(), x)
    step = 1e-5 * direction
    difference = (first(x + step) - first(x - step)).detach() / 2e-5
    torch.testing.assert_close(got, difference, rtol=1e-6, atol=1e-8)


def test_tensors_of_inference_mode_are_refused_only_where_gradients_are_needed():
    with torch.inference_mode():
        x = draw(3, 6)
        inside = solve(Function(), x).z
    with pytest.raises(UserError, match=r"was made in torch.inference_mode"):
        solve(Function(), x)
    with torch.no_grad():
        assert torch.equal(solve(Function(), x).z, inside)


def test_constant_f_has_no_gradient():
    class Constant(Function):
        def forward(self, z, x):
            return torch.ones_like(z)

    for backward in ("reversible", "implicit"):
        z0 = draw(3, 6).requires_grad_()
        z = solve(Constant(), draw(3, 6), z0, backward=backward, max_steps=3).z
        (got,) = torch.autograd.grad(z.sum(), z0, allow_unused=True)
        if backward == "reversible":
            torch.testing.assert_close(got, torch.full_like(got, 2.0**-3))
