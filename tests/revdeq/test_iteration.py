"""`solve`: saved memory, counted evaluations, and stopping by tolerance."""

import gc
import weakref

import torch

from tests.revdeq.functions import Function, gradients, relative_difference
from zoo.revdeq import solve


class SavedTensor:
    """A tensor saved for a backward pass; `alive` holds those whose graph still exists."""

    def __init__(self, tensor, alive):
        self.tensor = tensor
        alive.add(self)


def saved_bytes(backward, steps):
    alive = weakref.WeakSet()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: SavedTensor(t.detach(), alive), lambda saved: saved.tensor):
        solution = solve(Function(), torch.ones(3, 6, dtype=torch.float64), max_steps=steps, backward=backward)
    assert solution.z.requires_grad
    return sum(saved.tensor.nbytes for saved in alive)


def test_reversible_memory_does_not_grow_with_steps():
    assert saved_bytes("reversible", 4) == saved_bytes("reversible", 16)
    assert saved_bytes("unroll", 16) > 3 * saved_bytes("unroll", 4)
    assert saved_bytes("reversible", 4) < saved_bytes("unroll", 4) / 3


def test_no_reference_cycle_keeps_the_graph_alive():
    gc.collect()
    gc.disable()
    try:
        solution, _ = gradients("reversible", 3)
        node = weakref.ref(solution.z)
        del solution
        assert node() is None
    finally:
        gc.enable()


class Counted(Function):
    calls = 0

    def forward(self, z, x):
        self.calls += 1
        return super().forward(z, x)


def test_evaluations_are_counted_and_the_residual_costs_one():
    f = Counted()
    solution, _ = gradients("reversible", 4, f=f)
    assert f.calls == 8 + 8  # in the forward and again in the backward pass
    assert solution.evaluations == 8
    assert solution.steps == 4
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z, fz = solution.z, f(solution.z, x)
    f.calls = 0
    expected = (z - fz).norm(dim=1) / (1e-5 + fz.norm(dim=1))
    torch.testing.assert_close(solution.residual, expected, rtol=1e-12, atol=0)
    assert torch.equal(solution.residual, solution.residual)
    assert f.calls == 1


# ---- stopping by tolerance


def test_tolerance_stops_each_sample_independently():
    together, got = gradients("reversible", 15, tol=0.05, rows=5)
    assert together.steps.unique().numel() > 1, "all samples stopped at the same step: the test shows nothing"
    assert (together.residual <= 0.05).all()
    assert together.evaluations == 2 * together.steps.max() + 1
    f, draw = Function(), torch.Generator().manual_seed(1)
    x, weight, z0 = (torch.randn(5, 6, generator=draw, dtype=torch.float64) for _ in range(3))
    x.requires_grad_(), z0.requires_grad_()
    rows = []
    for i, steps in enumerate(together.steps.tolist()):
        rows.append(solve(f, x[i : i + 1], z0[i : i + 1], max_steps=steps, backward="unroll"))
        assert rows[i].residual <= 0.05
        assert solve(f, x[i : i + 1], z0[i : i + 1], max_steps=max(steps - 1, 1)).residual > 0.05 or steps == 1
    z = torch.cat([row.z for row in rows])
    torch.testing.assert_close(together.z, z, rtol=0, atol=1e-12)
    expected = torch.autograd.grad((z * weight).sum(), [x, z0, *f.parameters()])
    assert relative_difference(got, expected) < 1e-9


def test_unreachable_tolerance_ends_after_max_steps():
    solution, _ = gradients("reversible", 3, tol=1e-12)
    assert (solution.steps == 3).all()
    assert (solution.residual > 1e-12).all()
