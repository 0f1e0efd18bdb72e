"""`solve`: gradients against unrolling, by every way there is, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.revdeq.functions import Function, flat, gradients, off
from zoo.revdeq import ReconstructionError, solve
from zoo.revdeq.solver.fixed_point import SOLVERS


@pytest.mark.parametrize(("steps", "beta", "bound"), [(4, 0.5, 1e-12), (8, 0.5, 1e-10), (8, 1.5, 1e-10)])
def test_gradients_are_those_of_unrolling(steps, beta, bound):
    unrolled, expected = gradients("unroll", steps, beta=beta)
    walked, got = gradients("reversible", steps, beta=beta)
    assert torch.equal(walked.z, unrolled.z)
    assert off(got, expected) <= bound
    assert walked.reconstruction_error < 1e-6
    assert unrolled.reconstruction_error.isnan()


@pytest.mark.parametrize("steps", [4, 8, 16])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, None), (torch.float32, torch.bfloat16), (torch.bfloat16, None)]
)
def test_low_precision_costs_nothing_while_the_state_is_fp64(steps, dtype, autocast):
    _, expected = gradients("unroll", steps, dtype, autocast)
    walked, got = gradients("reversible", steps, dtype, autocast)
    assert walked.z.dtype == dtype
    assert off(got, expected) <= 1e-6
    assert walked.reconstruction_error < 1e-6


def test_a_state_of_fewer_digits_loses_the_way_and_says_so():
    single = {"dtype": torch.float32, "state_dtype": torch.float32}
    with pytest.warns(UserWarning, match=r"16 steps of beta 0\.5 may lose more digits .* about 13 are safe"):
        solution, got = gradients("reversible", 16, **single, max_reconstruction_error=9)
    _, expected = gradients("unroll", 16, **single)
    assert 1e-6 < solution.reconstruction_error < 9
    assert off(got, expected) > 1e-7


@pytest.mark.parametrize(
    ("steps", "every", "options", "bound"),
    [
        (32, 8, {}, 1e-10),
        (13, 3, {"beta": 0.8}, 1e-10),
        (16, 1, {"dtype": torch.float32, "state_dtype": torch.float32}, 1e-6),
    ],
)
def test_states_kept_on_the_way_bound_what_is_lost(steps, every, options, bound):
    _, expected = gradients("unroll", steps, **options)
    walked, got = gradients("reversible", steps, keep_every=every, **options)
    assert off(got, expected) <= bound
    assert walked.reconstruction_error < 1e-6


def test_states_kept_on_the_way_to_a_tolerance():
    whole, expected = gradients("reversible", 15, tol=0.05, rows=5)
    parts, got = gradients("reversible", 15, tol=0.05, rows=5, keep_every=2)
    assert len(set(whole.steps.tolist())) > 1
    assert parts.steps.tolist() == whole.steps.tolist()
    assert off(got, expected) <= 1e-12


class Bare(nn.Module):
    """The same function with its parameters among the inputs, for torch's gradcheck wants functions of tensors."""

    def forward(self, z, inputs):
        x, up, up_bias, down, down_bias = inputs
        return F.linear(torch.tanh(F.linear(z + x, up, up_bias)), down, down_bias)


@pytest.mark.parametrize("options", [{}, {"tol": 0.3, "max_steps": 9}, {"backward": "phantom"}])
def test_gradcheck(options):
    draw = torch.Generator().manual_seed(0)
    x, z0 = (torch.randn(2, 6, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(2))
    z0.requires_grad_(options.get("backward") != "phantom")  # whose gradients know nothing of where z came from
    steps = {"max_steps": 60} if "backward" in options else {"max_steps": 3}
    inputs = (z0, x, *Function().parameters())
    more = {"backward_steps": 60} if "backward" in options else {}
    assert torch.autograd.gradcheck(
        lambda z0, *inputs: solve(Bare(), inputs, z0, **(steps | options | more)).z, inputs, rtol=1e-4
    )


def test_checkpointing_is_unrolling():
    _, expected = gradients("unroll", 5)
    _, got = gradients("checkpoint", 5)
    assert off(got, expected) < 1e-15


def test_the_implicit_and_the_phantom_gradient_are_the_fixed_points_own():
    _, expected = gradients("unroll", 100)
    for solver in ("reversible", *SOLVERS):
        for backward in ("implicit", "phantom"):
            _, got = gradients(backward, 100, tol=1e-12, solver=solver, backward_steps=60)
            assert off(got[2:], expected[2:]) < 1e-9, (solver, backward)


def test_solvers_agree_and_the_clever_ones_are_quicker():
    found = {solver: gradients("implicit", 100, tol=1e-10, solver=solver)[0] for solver in ("reversible", *SOLVERS)}
    for solver, solution in found.items():
        torch.testing.assert_close(solution.z, found["plain"].z, rtol=0, atol=1e-8, msg=solver)
        assert (solution.residual <= 1e-10).all()
    assert found["broyden"].evaluations < found["anderson"].evaluations < found["plain"].evaluations / 1.5


def test_a_phantom_gradient_leaves_the_state_where_it_was():
    solution, _ = gradients("phantom", 3)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(1)
        x, _, z0 = (torch.randn(3, 6, generator=draw, dtype=torch.float64) for _ in range(3))
        assert torch.equal(solution.z, solve(Function(), x, z0, max_steps=3).z)


def test_an_implicit_gradient_scales_with_its_loss():
    f, x = Function(), torch.randn(3, 6, dtype=torch.float64)
    solution = solve(f, x, backward="implicit", solver="plain", max_steps=100)
    whole, tiny = (
        torch.autograd.grad(scale * solution.z.sum(), list(f.parameters()), retain_graph=True) for scale in (1, 1e-12)
    )
    assert off([g * 1e12 for g in tiny], whole) < 1e-9


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_work_in_fp32(solver):
    solution, _ = gradients("implicit", 60, torch.float32, state_dtype=torch.float32, solver=solver)
    assert solution.residual.max() < 1e-5


def test_many_steps_to_a_tolerance_are_no_trouble():
    solution, _ = gradients("reversible", 1000, tol=0.05)
    assert solution.steps.max() < 30


def test_a_state_that_is_not_finite_is_left_to_the_loss():
    solution, got = gradients("reversible", 4, f=Function(gain=float("inf")))
    assert not solution.z.isfinite().all()
    assert not flat(got).isfinite().all()


def test_z_may_have_another_width_than_x():
    class Narrowing(nn.Module):
        def __init__(self):
            super().__init__()
            self.of_x, self.of_z = nn.Linear(6, 4, dtype=torch.float64), nn.Linear(4, 4, dtype=torch.float64)

        def forward(self, z, x):
            return torch.tanh(self.of_x(x) + self.of_z(z))

    x, f = torch.randn(3, 6, dtype=torch.float64), Narrowing()
    solution = solve(f, x, torch.zeros(3, 4))
    solution.z.sum().backward()
    assert solution.z.shape == (3, 4)
    assert f.of_x.weight.grad.norm() > 0


# ---- what receives gradients


def test_only_what_wants_gradients_gets_them():
    f = Function()
    f.up.requires_grad_(False)
    x = torch.randn(3, 6, dtype=torch.float64)
    solve(f, x).z.sum().backward()
    assert f.up.weight.grad is None
    assert f.down.weight.grad is not None
    f.requires_grad_(False)
    assert not solve(f, x).z.requires_grad


def test_without_gradients_the_state_is_the_same():
    f, x = Function(), torch.randn(3, 6, dtype=torch.float64)
    with torch.no_grad():
        bare = solve(f, x)
    assert torch.equal(bare.z, solve(f, x).z)
    assert torch.equal(bare.residual, solve(f, x).residual)


class Routed(Function):
    """f that uses one of its two maps, by what it meets; both get their share."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(6, 6, dtype=torch.float64)

    def forward(self, z, x):
        return super().forward(z, x) if z.abs().mean() > 0.5 else torch.tanh(self.other(z + x))


def test_a_parameter_that_only_some_evaluations_use_keeps_its_gradient():
    _, expected = gradients("unroll", 6, f=Routed())
    _, got = gradients("reversible", 6, f=Routed())
    assert all(gradient.norm() > 0 for gradient in expected)
    assert off(got, expected) < 1e-12


def test_an_input_that_f_ignores_gets_none():
    class Deaf(Function):
        def forward(self, z, inputs):
            return super().forward(z, inputs[0])

    x = [torch.ones(2, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    solve(Deaf(), tuple(x)).z.sum().backward()
    assert x[0].grad is not None
    assert x[1].grad is None


# ---- what it refuses


def test_randomness_inside_f_is_found_out():
    class Noisy(Function):
        def forward(self, z, x):
            return F.dropout(super().forward(z, x), 0.5)

    with pytest.raises(ReconstructionError, match=r"missed the start by .* no randomness of its own, such as dropout"):
        gradients("reversible", 4, f=Noisy())


class Narrow(Function):
    def forward(self, z, x):
        return super().forward(z, x)[:, :1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"beta": 1}, "beta must lie in"),
        ({"beta": 0}, "beta must lie in"),
        ({"beta": 2.5}, "beta must lie in"),
        ({"max_steps": 0}, "max_steps must be at least 1, not 0"),
        ({"tol": 0.0}, "the tolerance must be positive"),
        ({"tol": 1e-3, "backward": "unroll"}, "a tolerance does not go with backward=unroll"),
        ({"tol": 1e-3, "backward": "checkpoint"}, "a tolerance does not go with backward=checkpoint"),
        ({"backward": "adjoint"}, "backward is one of reversible, unroll"),
        ({"backward": "implicit", "solver": "newton"}, "solver is one of reversible, plain"),
        ({"solver": "anderson"}, "solver=anderson needs backward=implicit or phantom"),
        ({"backward": "implicit", "backward_steps": 0}, "backward_steps must be at least 1"),
        ({"backward": "implicit", "keep_every": 2}, "keep_every needs backward=reversible, not implicit"),
        ({"backward_steps": 2}, "backward_steps needs backward=implicit or phantom, not reversible"),
        ({"z0": torch.zeros(2, 6)}, "z0 has 2 samples, but x 3"),
        ({"x": torch.ones(3, 6, dtype=torch.long)}, "x must be of a floating-point dtype"),
        ({"f": torch.tanh}, "f must be an nn.Module"),
        ({"f": Narrow()}, r"f gave a value of the shape \(3, 1\) for a state of \(3, 6\)"),
    ],
)
def test_what_does_not_go_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        solve(**{"f": Function(), "x": torch.ones(3, 6, dtype=torch.float64), **options})
