"""`solve` with the rest of autograd: hooks, functional_call, modules with state; all against "unroll"."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

from tests.revdeq.functions import METHODS, Function, draw, gradients, relative_difference
from zoo.errors import UserError
from zoo.revdeq import solve

REPEATED = ["reversible", "checkpoint", "implicit"]  # their backward passes evaluate f again


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


class Repeated(nn.Module):
    """Modules, a parametrized module, a parameter and a buffer, each under two names."""

    def __init__(self, fails=False):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.Linear(6, 6, dtype=torch.float64)
        self.layers = nn.ModuleList([layer, nn.Sequential(layer, nn.Tanh()), layer])
        self.normed = parametrizations.weight_norm(nn.Linear(6, 6, dtype=torch.float64))
        self.also_normed = self.normed
        self.scale = self.factor = nn.Parameter(draw(6))
        self.register_buffer("shift", draw(6))
        self.register_buffer("offset", self.shift)
        self.fails = fails

    def forward(self, z, x):
        for layer in self.layers:
            z = 0.3 * layer(z)
        z = 0.3 * torch.tanh(self.also_normed(self.normed(z)) + self.shift) * self.scale
        if self.fails:
            raise ZeroDivisionError
        return z * self.factor + x + self.offset


@pytest.mark.parametrize("backward", ["unroll", *METHODS])
@pytest.mark.parametrize("fails", [False, True])
def test_modules_and_tensors_with_two_names_train_and_stay_in_place(backward, fails):
    def tensors(f):
        return {
            **dict(f.named_parameters(remove_duplicate=False)),
            **dict(f.named_buffers(remove_duplicate=False)),
        }

    f, x = Repeated(fails), draw(3, 6)
    before = tensors(f)
    if fails:
        with pytest.raises(ZeroDivisionError):
            solve(f, x, backward=backward)
    else:
        expected = parameter_gradients(Repeated(), x, "unroll")
        if backward in ("implicit", "phantom"):
            g = Repeated()
            solve(g, x, backward="unroll", max_steps=60).z.square().sum().backward()
            expected = {name: p.grad for name, p in g.named_parameters()}
        got = parameter_gradients(f, x, backward)
        assert got.keys() == expected.keys()
        assert len(got) == 6
        for name in expected:
            torch.testing.assert_close(got[name], expected[name], rtol=1e-8, atol=1e-13, msg=name)
        with torch.no_grad():
            assert solve(f, x, backward=backward).residual.isfinite().all()
    after = tensors(f)
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


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
    error, sentence = UserError, "was changed between solve and its backward pass: call backward"
    if backward in ("unroll", "phantom"):  # autograd's own graph
        error, sentence = RuntimeError, "modified by an inplace operation"
    with pytest.raises(error, match=sentence):
        solution.z.sum().backward()


@pytest.mark.parametrize("backward", METHODS)
def test_backward_pass_uses_the_modes_of_the_forward_pass(backward):
    class Dropped(Function):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, z, x):
            return self.dropout(super().forward(z, x))

    f = Dropped().eval()
    expected = parameter_gradients(f, draw(3, 6), backward)
    settings = {"max_steps": 8} if backward in ("reversible", "checkpoint") else options(backward)
    solution = solve(f, draw(3, 6), backward=backward, **settings)
    f.train()
    solution.z.square().sum().backward()
    assert f.training
    assert f.dropout.training
    for name, p in f.named_parameters():
        assert torch.equal(p.grad, expected[name])


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
    with pytest.raises(UserError, match=rf"f changes its buffer .* so backward={backward}.* set backward=unroll"):
        solve(f, draw(8, 6), backward=backward)
    if layer == "replaced":  # also in eval mode
        solution = solve(f, draw(8, 6), backward="unroll")
        assert f.state.eq(f.state[0]).all()
        assert f.state[0] == 8 + (backward == "implicit") * 8
        assert solution.residual.isfinite().all()
        assert f.state[0] == 8 + (backward == "implicit") * 8
        return
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
