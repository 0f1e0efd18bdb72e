"""Gradients of a fixed point by the implicit function theorem.

At z = f(z, x), dL/dtheta = u df/dtheta, where u solves u = u df/dz + dL/dz, a linear fixed-point problem (Bai et al.
2019, https://arxiv.org/abs/1909.01377). The gradients are as exact as both fixed points, with any solver.
"""

import torch
from torch import Tensor

from zoo.revdeq.solver.diagnostics import Diagnostics, per_sample_norm
from zoo.revdeq.solver.evaluation import BoundModule, Differentiable, SavedAutocast
from zoo.revdeq.solver.fixed_point import find_fixed_point
from zoo.revdeq.solver.iteration import Iteration
from zoo.revdeq.solver.requirements import read_saved_tensors, refuse_second_derivatives


class Implicit(torch.autograd.Function):
    """apply(f, solver, adjoint, number of inputs, z, *inputs, *f.tensors) -> z, where z is a fixed point of f.

    `solver` and `adjoint` are the solver and the iteration settings of the backward pass's fixed-point problem.
    """

    @staticmethod
    def forward(ctx, f: BoundModule, solver: str, adjoint: Iteration, n: int, z: Tensor, *leaves: Tensor) -> Tensor:
        ctx.f, ctx.solver, ctx.adjoint, ctx.n, ctx.autocast = f, solver, adjoint, n, SavedAutocast(z.device.type)
        ctx.save_for_backward(z, *leaves)
        return z.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        refuse_second_derivatives("implicit")
        # Evaluate f once at the fixed point, with a graph from which all products u df/dz are taken.
        z, *leaves = read_saved_tensors(ctx)
        f = Differentiable(ctx.f, ctx.n, leaves, ctx.autocast, z.dtype)
        leaf, value = f.record(z)
        # The problem is linear. Solve it at norm 1, so that the tolerance does not depend on the scale of the loss. All
        # samples have one scale: f may mix them, and then a product with df/dz adds gradients of different samples.
        size = per_sample_norm(grad).max().clamp(min=torch.finfo(grad.dtype).tiny)
        unit_grad = grad / size

        # One step of u = u df/dz + dL/dz.
        def adjoint_step(u: Tensor) -> Tensor:
            if not value.requires_grad:  # f is constant
                return unit_grad
            product = torch.autograd.grad(value, leaf, u, retain_graph=True, allow_unused=True)[0]
            return unit_grad if product is None else unit_grad + product.to(u.dtype)

        # Solve for u, and multiply it into the inputs and parameters: dL/dtheta = u df/dtheta.
        u = find_fixed_point(ctx.solver, adjoint_step, unit_grad, ctx.adjoint, Diagnostics())
        f.vjp(leaf, value, size * u)
        return None, None, None, None, None, *f.gradients
