"""Gradients of a fixed point, whatever way led to it.

At z = f(z, x) the implicit function theorem gives dL/dtheta = u df/dtheta with u = u df/dz + dL/dz, a linear
fixed-point problem of its own (Bai et al. 2019, https://arxiv.org/abs/1909.01377). It is as exact as both fixed points.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.revdeq.solver.fixed_point import find
from zoo.revdeq.solver.iteration import Autocast, Function, Iteration, Report, per_sample_norm
from zoo.revdeq.solver.pullback import Pullback


class Implicit(torch.autograd.Function):
    """apply(f, solver, iteration, how many inputs, z, *inputs, *parameters) -> z, a fixed point found before.

    Solver and iteration are those of the backward pass's own fixed point.
    """

    @staticmethod
    def forward(ctx, f: Function, solver: str, adjoint: Iteration, n: int, z: Tensor, *leaves: Tensor) -> Tensor:
        ctx.f, ctx.solver, ctx.adjoint, ctx.n, ctx.autocast = f, solver, adjoint, n, Autocast(z.device.type)
        ctx.save_for_backward(z, *leaves)
        return z.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        z, *leaves = ctx.saved_tensors
        pullback = Pullback(ctx.f, leaves[: ctx.n], leaves[ctx.n :], ctx.autocast, z.dtype)
        leaf, value = pullback.at(z)
        # The problem is linear: it is solved at size 1, lest the tolerance mean another thing for another loss.
        size = per_sample_norm(grad).clamp(min=torch.finfo(grad.dtype).tiny).view(-1, *[1] * (grad.ndim - 1))
        unit = grad / size

        def adjoint(u: Tensor) -> Tensor:
            through = torch.autograd.grad(value, leaf, u, retain_graph=True, allow_unused=True)[0]
            return unit if through is None else unit + through.to(u.dtype)

        pullback.pull(leaf, value, size * find(ctx.solver, adjoint, unit, ctx.adjoint, Report()))
        return None, None, None, None, None, *pullback.gradients
