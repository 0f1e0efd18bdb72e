"""Helpers for the tests of `solve`: a small f, and its gradients by each method."""

import torch
from torch import nn

from zoo.revdeq import solve

METHODS = ["reversible", "checkpoint", "implicit", "phantom"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Function(nn.Module):
    """A small f that treats samples independently; with `gain` above 1 it need not be a contraction."""

    def __init__(self, dtype=torch.float64, gain=1.0, dim=6):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(dim, 16, dtype=dtype), nn.Linear(16, dim, dtype=dtype)
        self.gain = gain

    def forward(self, z, x):
        return self.gain * self.down(torch.tanh(self.up(z + x)))


def gradients(backward, steps, dtype=torch.float64, autocast=None, f=None, rows=3, **options):
    """The solution, and the gradients of z0, x and all parameters."""
    f = Function(dtype) if f is None else f
    draw = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(rows, 6, generator=draw, dtype=torch.float64).to(dtype) for _ in range(2))
    z0 = torch.randn(rows, 6, generator=draw, dtype=torch.float64)
    leaves = [x.requires_grad_(), z0.requires_grad_(), *f.parameters()]
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        solution = solve(f, x, z0, max_steps=steps, backward=backward, **options)
    unused = backward in ("implicit", "phantom")  # z0: a fixed point does not depend on it
    return solution, torch.autograd.grad((solution.z * weight).sum(), leaves, allow_unused=unused)


def relative_difference(got, expected):
    """Norm of the difference of all gradients, relative to the norm of those expected."""
    return (flat(got) - flat(expected)).norm() / flat(expected).norm()


def flat(gradients):
    return torch.cat([g.double().flatten() for g in gradients])
