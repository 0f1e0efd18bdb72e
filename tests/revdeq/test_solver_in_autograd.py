"""`solve` with the rest of autograd: hooks, functional_call, transforms, modules with state; all against "unroll"."""

import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils import parametrizations

from tests.revdeq.functions import Function, gradients, relative_difference
from zoo.errors import UserError
from zoo.revdeq import solve
from zoo.revdeq.solver.fixed_point import SOLVERS

METHODS = ["reversible", "checkpoint", "implicit", "phantom"]
REPEATED = ["reversible", "checkpoint", "implicit"]  # their backward passes evaluate f again


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def options(backward):
    """Settings with which a method's gradients equal those of unrolling 60 steps to 1e-9."""
    every = {"keep_every": 4} if backward == "reversible" else {}
    solved = {"tol": 1e-12, "max_steps": 100, "backward_steps": 60}
    return solved if backward in ("implicit", "phantom") else {"max_steps": 60} | every


def parameter_gradients(f, x, backward, **others):
    settings = {"max_steps": 8} if backward in ("unroll", "reversible", "checkpoint") else options(backward)
    solution = solve(f, x, backward=backward, **settings, **others)
    solution.z.square().sum().backward()
    got = {name: p.grad.clone() for name, p in f.named_parameters() if p.grad is not None}
    f.zero_grad()
    return got


# ---- hooks


@pytest.mark.parametrize("backward", ["unroll", *METHODS])
def test_hooks_on_parameters_and_inputs_run_once_with_the_final_gradient(backward):
    f, x, calls = Function(), draw(3, 6).requires_grad_(), []
    f.up.weight.register_hook(lambda g: calls.append("weight") or 2 * g)
    f.up.bias.register_post_accumulate_grad_hook(lambda p: calls.append("bias"))
    x.register_hook(lambda g: calls.append("x") or 3 * g)
    hooked, hooked_x = parameter_gradients(f, x, backward), x.grad
    plain, plain_x = Function(), draw(3, 6).requires_grad_()
    expected = parameter_gradients(plain, plain_x, backward)
    assert sorted(calls) == ["bias", "weight", "x"]
    torch.testing.assert_close(hooked["up.weight"], 2 * expected["up.weight"], rtol=1e-9, atol=0)
    torch.testing.assert_close(hooked["down.weight"], expected["down.weight"], rtol=1e-9, atol=0)
    torch.testing.assert_close(hooked_x, 3 * plain_x.grad, rtol=1e-9, atol=0)


@pytest.mark.parametrize("backward", ["reversible", "checkpoint"])
def test_module_hooks_change_values_and_gradients_as_with_unroll(backward):
    got = {}
    for method in ("unroll", backward):
        f = Function()
        f.up.register_forward_hook(lambda module, inputs, output: 0.5 * output)
        f.down.register_full_backward_hook(lambda module, into, out: (0.9 * into[0],))
        got[method] = gradients(method, 6, f=f)[1]
    assert relative_difference(got[backward], got["unroll"]) < 1e-12


# ---- parameters that are not f's own


@pytest.mark.parametrize("backward", METHODS)
@pytest.mark.parametrize("of_parent", [False, True])
def test_functional_call_differentiates_the_parameters_given(backward, of_parent):
    class Parent(nn.Module):
        def __init__(self, method):
            super().__init__()
            self.f, self.method = Function(), method

        def forward(self, x):
            return solve(self.f, x, backward=self.method, **options(self.method))

    def run(method):
        # The weights given are computed from `theta` and differ from the module's own.
        parent, theta = Parent(method), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        given = {name: (theta * p).detach() + theta * p for name, p in parent.named_parameters()}
        solution = functional_call(parent, given, (draw(3, 6),))
        solution.z.square().sum().backward()
        assert all(p.grad is not None for p in parent.parameters())
        return theta.grad, solution.residual

    (expected, _), (got, residual) = run("unroll"), run(backward)
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=0)
    assert residual.max() < 1e-9  # evaluated after functional_call has ended, with the parameters given


class Tied(nn.Module):
    """Two layers with one weight, one frozen bias, weight norm and a GRU cell's list of parameters."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 6, dtype=torch.float64), nn.Linear(6, 6, dtype=torch.float64)
        self.second.weight = self.first.weight
        self.first.bias.requires_grad_(False)
        self.normed = parametrizations.weight_norm(nn.Linear(6, 6, dtype=torch.float64))
        self.gru = nn.GRU(6, 6, dtype=torch.float64)
        self.register_buffer("shift", draw(6))

    def forward(self, z, x):
        h = torch.tanh(self.second(self.normed(torch.tanh(self.first(z) + self.shift))) + x)
        return self.gru(h[None])[0][0]


@pytest.mark.parametrize("backward", METHODS)
def test_shared_frozen_and_parametrized_weights(backward):
    reference = {"max_steps": 60} if backward in ("implicit", "phantom") else {"max_steps": 8}
    f = Tied()
    solve(f, draw(3, 6), backward="unroll", **reference).z.square().sum().backward()
    expected = {name: p.grad.clone() for name, p in f.named_parameters() if p.grad is not None}
    f.zero_grad()
    got = parameter_gradients(f, draw(3, 6), backward)
    assert got.keys() == expected.keys()
    assert "first.bias" not in got
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-8, atol=1e-13, msg=name)


@pytest.mark.parametrize("backward", ["reversible", "implicit"])
@pytest.mark.parametrize("computed", [False, True])
def test_tensor_outside_of_f_that_needs_a_gradient_is_refused(backward, computed):
    weight = draw(6).requires_grad_()

    class Closure(Function):
        def __init__(self):
            super().__init__()
            self.outside = (2 * weight,) if computed else (weight,)  # in a tuple, so that it is no parameter

        def forward(self, z, x):
            return super().forward(z, x) * self.outside[0]

    with pytest.raises(UserError, match=r"f uses a tensor of shape \(6,\) that needs a gradient and is neither"):
        solve(Closure(), draw(3, 6), backward=backward).z.sum().backward()
    (got,) = torch.autograd.grad(solve(Closure(), draw(3, 6), backward="checkpoint").z.sum(), weight)
    (expected,) = torch.autograd.grad(solve(Closure(), draw(3, 6), backward="unroll").z.sum(), weight)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("backward", "changed"), [*((name, "weight") for name in ["unroll", *METHODS]), *((name, "x") for name in REPEATED)]
)
def test_change_between_forward_and_backward_is_refused(backward, changed):
    f, x = Function(), draw(3, 6)
    solution = solve(f, x, backward=backward)
    with torch.no_grad():
        (x if changed == "x" else f.down.weight).mul_(2)
    with pytest.raises((UserError, RuntimeError), match=r"modified by an inplace operation|was changed between solve"):
        solution.z.sum().backward()


# ---- state of f


@pytest.mark.parametrize("backward", REPEATED)
@pytest.mark.parametrize("layer", ["batch_norm", "spectral_norm", "replaced", "uncounted"])
def test_f_that_changes_a_buffer_is_refused(backward, layer):
    class Stateful(Function):
        def __init__(self):
            super().__init__()
            self.register_buffer("state", torch.zeros(6, dtype=torch.float64))
            self.layer = nn.Identity()
            if layer == "batch_norm":
                self.layer = nn.BatchNorm1d(6, dtype=torch.float64)
            if layer == "spectral_norm":
                self.layer = parametrizations.spectral_norm(nn.Linear(6, 6, dtype=torch.float64))

        def forward(self, z, x):
            if layer == "replaced":
                self.state = self.state + 1
            if layer == "uncounted":  # the kernel changes running statistics without counting it as a change
                z = F.batch_norm(z, self.state, self.state + 1, training=self.training)
            return self.layer(super().forward(z, x))

    f = Stateful()
    if layer != "replaced":
        with pytest.raises(UserError, match=rf"f changes its buffer .* so backward={backward}.* set backward=unroll"):
            solve(f, draw(8, 6), backward=backward)
        f.eval()
    expected = parameter_gradients(f, draw(8, 6), "unroll")
    if backward != "implicit":
        got = parameter_gradients(f, draw(8, 6), backward)
        assert relative_difference(list(got.values()), list(expected.values())) < 1e-12


def test_running_statistics_with_unroll_see_every_evaluation_once():
    class Normed(Function):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(6, dtype=torch.float64)

        def forward(self, z, x):
            return self.norm(super().forward(z, x))

    f = Normed()
    solution = solve(f, draw(8, 6), backward="unroll", max_steps=3)
    solution.z.sum().backward()
    assert f.norm.num_batches_tracked == 6  # two evaluations a step


@pytest.mark.parametrize("backward", REPEATED)
def test_f_that_draws_random_numbers_is_refused(backward):
    class Noisy(Function):
        def forward(self, z, x):
            return F.dropout(super().forward(z, x), 0.5, self.training)

    with pytest.raises(UserError, match=f"f draws random numbers, so backward={backward}"):
        solve(Noisy(), draw(3, 6), backward=backward)
    expected = parameter_gradients(Noisy().eval(), draw(3, 6), "unroll")
    if backward != "implicit":
        got = parameter_gradients(Noisy().eval(), draw(3, 6), backward)
        assert relative_difference(list(got.values()), list(expected.values())) < 1e-12


# ---- transforms, second derivatives, compilation


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


# ---- samples that are not finite


@pytest.mark.parametrize("solver", ["reversible", *SOLVERS])
@pytest.mark.parametrize("tol", [None, 1e-9])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_sample_without_a_finite_value_becomes_nan_and_leaves_the_others(solver, tol, bad):
    class Contraction(Function):
        def forward(self, z, x):
            return torch.cos(z) / 4 + x

    x = draw(4, 6)
    x[1, 2] = bad
    settings = {"solver": solver, "tol": tol, "max_steps": 60, "backward": "implicit"}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        solution, alone = solve(Contraction(), x, **settings), solve(Contraction(), x[[0, 2, 3]], **settings)
    others = solution.z[[0, 2, 3]]
    assert not solution.z[1].isfinite().all()
    assert solver == "reversible" or solution.z[1].isnan().all()
    assert not solution.residual[1].isfinite()
    torch.testing.assert_close(others, alone.z, rtol=0, atol=1e-12)
    assert (solution.residual[[0, 2, 3]] < 1e-8).all()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"x": [torch.ones(3, 6)]}, "x must be a tensor or a tuple of tensors, not list"),
        ({"x": ()}, "x must be a tensor or a tuple of tensors, not an empty tuple"),
        ({"x": (torch.ones(3, 6), None)}, "not Tensor, NoneType"),
        ({"x": torch.tensor(1.0)}, "x must have an axis of samples"),
        ({"z0": 0.0}, "z0 must be a tensor of real numbers, not float"),
        ({"z0": torch.tensor(0.0)}, "z0 has no axis of samples"),
        ({"state_dtype": torch.int64}, "state_dtype must be a floating-point dtype"),
        ({"max_steps": True}, "max_steps must be a whole number, at least 1, not True"),
        ({"max_steps": 2.0}, "max_steps must be a whole number"),
        ({"beta": "0.5"}, "beta must be in"),
        ({"beta": float("nan")}, "beta must be in"),
        ({"tol": float("nan")}, "the tolerance must be positive"),
        ({"max_reconstruction_error": 0}, "max_reconstruction_error must be positive"),
        ({"f": nn.DataParallel(nn.Identity())}, "f must not be a DataParallel"),
        ({"f": nn.GRUCell(6, 6), "x": torch.ones(3, 6), "backward": 3}, "backward must be one of"),
    ],
)
def test_wrong_arguments_raise_user_error(given, sentence):
    with pytest.raises(UserError, match=sentence):
        solve(**{"f": Function(), "x": torch.ones(3, 6, dtype=torch.float64), **given})
