"""`solve`: gradients of every method against unrolling, and refused settings."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.revdeq.functions import Function, flat, gradients, relative_difference
from zoo.errors import UserError
from zoo.revdeq import ReconstructionError, solve
from zoo.revdeq.solver.diagnostics import relative_residual
from zoo.revdeq.solver.fixed_point import SOLVERS


@pytest.mark.parametrize(("steps", "beta", "bound"), [(4, 0.5, 1e-12), (8, 0.5, 1e-10), (8, 1.5, 1e-10)])
def test_reversible_gradients_equal_unrolled(steps, beta, bound):
    unrolled, expected = gradients("unroll", steps, beta=beta)
    inverted, got = gradients("reversible", steps, beta=beta)
    assert torch.equal(inverted.z, unrolled.z)
    assert relative_difference(got, expected) <= bound
    assert inverted.reconstruction_error < 1e-6
    assert unrolled.reconstruction_error.isnan()


@pytest.mark.parametrize("steps", [4, 8, 16])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, None), (torch.float32, torch.bfloat16), (torch.bfloat16, None)]
)
def test_low_precision_f_is_exact_with_fp64_state(steps, dtype, autocast):
    _, expected = gradients("unroll", steps, dtype, autocast)
    inverted, got = gradients("reversible", steps, dtype, autocast)
    assert inverted.z.dtype == dtype
    assert relative_difference(got, expected) <= 1e-6
    assert inverted.reconstruction_error < 1e-6


def test_fp32_state_warns_and_loses_digits():
    single = {"dtype": torch.float32, "state_dtype": torch.float32}
    with pytest.warns(UserWarning, match=r"16 steps of beta 0\.5 may lose more digits .* about 13 steps are safe"):
        solution, got = gradients("reversible", 16, **single, max_reconstruction_error=9)
    _, expected = gradients("unroll", 16, **single)
    assert 1e-6 < solution.reconstruction_error < 9
    assert relative_difference(got, expected) > 1e-7


@pytest.mark.parametrize(
    ("steps", "every", "options", "bound"),
    [
        (32, 8, {}, 1e-10),
        (13, 3, {"beta": 0.8}, 1e-10),
        (16, 1, {"dtype": torch.float32, "state_dtype": torch.float32}, 1e-6),
    ],
)
def test_keep_every_bounds_the_error(steps, every, options, bound):
    _, expected = gradients("unroll", steps, **options)
    inverted, got = gradients("reversible", steps, keep_every=every, **options)
    assert relative_difference(got, expected) <= bound
    assert inverted.reconstruction_error < 1e-6


def test_keep_every_with_a_tolerance():
    full, expected = gradients("reversible", 15, tol=0.05, rows=5)
    parts, got = gradients("reversible", 15, tol=0.05, rows=5, keep_every=2)
    assert len(set(full.steps.tolist())) > 1
    assert parts.steps.tolist() == full.steps.tolist()
    assert relative_difference(got, expected) <= 1e-12


class Bare(nn.Module):
    """The same function with its parameters among the inputs, because gradcheck needs a function of tensors."""

    def forward(self, z, inputs):
        x, up, up_bias, down, down_bias = inputs
        return F.linear(torch.tanh(F.linear(z + x, up, up_bias)), down, down_bias)


@pytest.mark.parametrize("options", [{}, {"tol": 0.3, "max_steps": 9}, {"backward": "phantom"}])
def test_gradcheck(options):
    draw = torch.Generator().manual_seed(0)
    x, z0 = (torch.randn(2, 6, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(2))
    z0.requires_grad_(options.get("backward") != "phantom")  # phantom gradients do not reach z0
    steps = {"max_steps": 60} if "backward" in options else {"max_steps": 3}
    inputs = (z0, x, *Function().parameters())
    backward_steps = {"backward_steps": 60} if "backward" in options else {}
    assert torch.autograd.gradcheck(
        lambda z0, *inputs: solve(Bare(), inputs, z0, **(steps | options | backward_steps)).z, inputs, rtol=1e-4
    )


def test_checkpoint_gradients_equal_unrolled():
    _, expected = gradients("unroll", 5)
    _, got = gradients("checkpoint", 5)
    assert relative_difference(got, expected) < 1e-15


def test_implicit_and_phantom_gradients_converge_to_the_fixed_points():
    _, expected = gradients("unroll", 100)
    for solver in ("reversible", *SOLVERS):
        for backward in ("implicit", "phantom"):
            _, got = gradients(backward, 100, tol=1e-12, solver=solver, backward_steps=60)
            assert relative_difference(got[2:], expected[2:]) < 1e-9, (solver, backward)


def test_solvers_agree_and_anderson_and_broyden_need_fewer_evaluations():
    solutions = {solver: gradients("implicit", 100, tol=1e-10, solver=solver)[0] for solver in ("reversible", *SOLVERS)}
    for solver, solution in solutions.items():
        torch.testing.assert_close(solution.z, solutions["plain"].z, rtol=0, atol=1e-8, msg=solver)
        assert (solution.residual <= 1e-10).all()
    count = {solver: solution.evaluations for solver, solution in solutions.items()}
    assert count["broyden"] < count["anderson"] < count["plain"] / 1.5


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_single_evaluation_gives_its_value(solver):
    draw = torch.Generator().manual_seed(1)
    x, _, z0 = (torch.randn(3, 6, generator=draw, dtype=torch.float64) for _ in range(3))
    f = Function()
    fz = f(z0, x).detach()
    for backward in ("implicit", "phantom"):
        solution = solve(f, x, z0, max_steps=1, solver=solver, backward=backward)
        assert torch.equal(solution.z, fz)
        assert (solution.evaluations, solution.steps.tolist()) == (1, [1, 1, 1])
        assert torch.equal(solution.residual, relative_residual(fz, f(fz, x).detach()))
    # A first state within the tolerance remains.
    fixed = solve(f, x, max_steps=200, tol=1e-12, solver=solver, backward="implicit").z.detach()
    start = torch.cat([z0[:2], fixed[2:]])
    again = solve(f, x, start, max_steps=1, tol=1e-6, solver=solver, backward="implicit").z
    assert torch.equal(again, torch.cat([fz[:2], fixed[2:]]))


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_plain_solver_equals_a_loop(steps):
    draw = torch.Generator().manual_seed(1)
    x, _, z0 = (torch.randn(3, 6, generator=draw, dtype=torch.float64) for _ in range(3))
    f, z = Function(), z0
    for _ in range(steps - 1):  # the last evaluation is that of the last state's residual
        z = 0.7 * z + 0.3 * f(z, x).detach()
    solution = solve(f, x, z0, beta=0.3, max_steps=steps, solver="plain", backward="implicit")
    torch.testing.assert_close(solution.z, z, rtol=0, atol=1e-14)
    assert solution.evaluations == steps


def test_phantom_gradient_does_not_change_the_state():
    solution, _ = gradients("phantom", 3)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(1)
        x, _, z0 = (torch.randn(3, 6, generator=draw, dtype=torch.float64) for _ in range(3))
        assert torch.equal(solution.z, solve(Function(), x, z0, max_steps=3).z)


def test_implicit_gradient_scales_with_the_loss():
    f, x = Function(), torch.randn(3, 6, dtype=torch.float64)
    solution = solve(f, x, backward="implicit", solver="plain", max_steps=100)
    unit, tiny = (
        torch.autograd.grad(scale * solution.z.sum(), list(f.parameters()), retain_graph=True) for scale in (1, 1e-12)
    )
    assert relative_difference([g * 1e12 for g in tiny], unit) < 1e-9


@pytest.mark.parametrize("backward", ["checkpoint", "implicit", "phantom"])
def test_gradients_of_an_f_that_mixes_samples_equal_unrolled(backward):
    class Mixing(Function):
        def forward(self, z, x):
            return super().forward(z, x) + 0.4 * z.mean(0)

    def gradient(backward, **options):
        f, x = Mixing(gain=0.5), torch.linspace(-1, 1, 18, dtype=torch.float64).view(3, 6).requires_grad_()
        z = solve(f, x, backward=backward, max_steps=100, **options).z
        weight = torch.tensor([1.0, 1e-3, 0.0], dtype=torch.float64)  # gradients of different sizes, one of them 0
        return torch.autograd.grad((weight @ z.square()).sum(), [x, *f.parameters()])

    options = {} if backward == "checkpoint" else {"backward_steps": 100}
    assert relative_difference(gradient(backward, **options), gradient("unroll")) < 1e-7


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_work_in_fp32(solver):
    solution, _ = gradients("implicit", 60, torch.float32, state_dtype=torch.float32, solver=solver)
    assert solution.residual.max() < 1e-5


def test_tolerance_ends_long_before_max_steps():
    solution, _ = gradients("reversible", 1000, tol=0.05)
    assert solution.steps.max() < 30


def test_non_finite_state_raises_no_reconstruction_error():
    solution, got = gradients("reversible", 4, f=Function(gain=float("inf")))
    assert not solution.z.isfinite().all()
    assert not flat(got).isfinite().all()


def test_z_and_x_may_differ_in_width():
    class Narrowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.from_x, self.from_z = nn.Linear(6, 4, dtype=torch.float64), nn.Linear(4, 4, dtype=torch.float64)

        def forward(self, z, x):
            return torch.tanh(self.from_x(x) + self.from_z(z))

    x, f = torch.randn(3, 6, dtype=torch.float64), Narrowing()
    solution = solve(f, x, torch.zeros(3, 4))
    solution.z.sum().backward()
    assert solution.z.shape == (3, 4)
    assert f.from_x.weight.grad.norm() > 0


# ---- what receives gradients


def test_frozen_parameters_get_no_gradients():
    f = Function()
    f.up.requires_grad_(False)
    x = torch.randn(3, 6, dtype=torch.float64)
    solve(f, x).z.sum().backward()
    assert f.up.weight.grad is None
    assert f.down.weight.grad is not None
    f.requires_grad_(False)
    assert not solve(f, x).z.requires_grad


def test_no_grad_gives_the_same_state():
    f, x = Function(), torch.randn(3, 6, dtype=torch.float64)
    with torch.no_grad():
        solution = solve(f, x)
    assert torch.equal(solution.z, solve(f, x).z)
    assert torch.equal(solution.residual, solve(f, x).residual)


class Routed(Function):
    """f that uses one of two maps, depending on the size of z."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(6, 6, dtype=torch.float64)

    def forward(self, z, x):
        return super().forward(z, x) if z.abs().mean() > 0.5 else torch.tanh(self.other(z + x))


def test_parameters_used_by_some_evaluations_only_get_their_gradients():
    _, expected = gradients("unroll", 6, f=Routed())
    _, got = gradients("reversible", 6, f=Routed())
    assert all(gradient.norm() > 0 for gradient in expected)
    assert relative_difference(got, expected) < 1e-12


def test_unused_input_gets_no_gradient():
    class IgnoresSecond(Function):
        def forward(self, z, inputs):
            return super().forward(z, inputs[0])

    x = [torch.ones(2, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    solve(IgnoresSecond(), tuple(x)).z.sum().backward()
    assert x[0].grad is not None
    assert x[1].grad is None


# ---- errors


def test_random_f_raises_reconstruction_error():
    generator = torch.Generator().manual_seed(0)

    class Noisy(Function):
        def forward(self, z, x):
            # A generator that the check of torch's random state does not see.
            noise = torch.rand(z.shape, generator=generator, dtype=z.dtype)
            return super().forward(z, x) * noise

    with pytest.raises(ReconstructionError, match=r"missed their start by .* make sure that f is deterministic"):
        gradients("reversible", 4, f=Noisy())


class Narrow(Function):
    def forward(self, z, x):
        return super().forward(z, x)[:, :1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"beta": 1}, "beta must be in"),
        ({"beta": 0}, "beta must be in"),
        ({"beta": 2.5}, "beta must be in"),
        ({"max_steps": 0}, "max_steps must be at least 1, not 0"),
        ({"tol": 0.0}, "the tolerance must be positive"),
        ({"tol": 1e-3, "backward": "unroll"}, "a tolerance excludes backward=unroll"),
        ({"tol": 1e-3, "backward": "checkpoint"}, "a tolerance excludes backward=checkpoint"),
        ({"backward": "adjoint"}, "backward must be one of reversible, unroll"),
        ({"backward": "implicit", "solver": "newton"}, "solver must be one of reversible, plain"),
        ({"solver": "anderson"}, "solver=anderson needs backward=implicit or phantom"),
        ({"backward": "implicit", "backward_steps": 0}, "backward_steps must be at least 1"),
        ({"backward": "implicit", "keep_every": 2}, "keep_every needs backward=reversible, not implicit"),
        ({"backward_steps": 2}, "backward_steps needs backward=implicit or phantom, not reversible"),
        ({"z0": torch.zeros(2, 6)}, "z0 has 2 samples, but x 3"),
        ({"x": torch.ones(3, 6, dtype=torch.long)}, "x must be of a floating-point dtype"),
        ({"f": torch.tanh}, "f must be an nn.Module"),
        ({"f": Narrow()}, r"f must return the shape of its state: it returned \(3, 1\) for \(3, 6\)"),
    ],
)
def test_wrong_settings_raise_user_error(options, sentence):
    with pytest.raises(UserError, match=sentence):
        solve(**{"f": Function(), "x": torch.ones(3, 6, dtype=torch.float64), **options})
