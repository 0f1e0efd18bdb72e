"""Backpropagation through the reversible iteration, by walking it back.

From the last y and z, the states before them are (McCallum et al. 2025, https://arxiv.org/abs/2509.12917)

    z' = (z - b f(y, x)) / (1 - b)
    y' = (y - b f(z', x)) / (1 - b),

and differentiating f at y and z' on the way gives the gradients of the very iteration that was run. Kept are x, y and
z, whatever the number of steps. Dividing by 1 - b magnifies rounding at every step; hence states in fp64 while f
computes in x's dtype, and f called the same way in both passes, so that its own rounding returns and cancels. Where
that is not enough, the way back begins anew at states kept every so many steps.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.revdeq.iteration import Autocast, Function, Iteration
from zoo.revdeq.pullback import Pullback


class ReconstructionError(ArithmeticError):
    """Walking the iteration back did not end where it began, so its gradients would be wrong."""


class Reversible(torch.autograd.Function):
    """apply(f, iteration, bound, how many inputs, z0, *inputs, *parameters) -> z after the iteration.

    Parameters are inputs and their gradients outputs, because an inner backward() would go past
    DistributedDataParallel.
    """

    @staticmethod
    def forward(ctx, f: Function, iteration: Iteration, bound: float, n: int, z0: Tensor, *leaves: Tensor) -> Tensor:
        ctx.f, ctx.iteration, ctx.bound, ctx.n = f, iteration, bound, n
        ctx.autocast = Autocast(z0.device.type)
        y, z = iteration.run(Pullback(f, leaves[:n], leaves[n:], ctx.autocast).value, z0)
        ctx.kept = len(iteration.kept)
        ctx.save_for_backward(y, z, *iteration.kept, *leaves)
        iteration.kept.clear()
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        y, z, *saved = ctx.saved_tensors
        kept, leaves = saved[: ctx.kept], saved[ctx.kept :]
        iteration, beta = ctx.iteration, ctx.iteration.beta
        pullback = Pullback(ctx.f, leaves[: ctx.n], leaves[ctx.n :], ctx.autocast)
        size, of_y, of_z = z.norm(), torch.zeros_like(grad), grad
        steps, error = int(iteration.steps.max()), torch.zeros_like(size)
        for number in range(steps, 0, -1):
            leaf, value = pullback.at(y)
            of_y = of_y + pullback.pull(leaf, value, iteration.where(number, beta * of_z, 0))
            z = iteration.where(number, iteration.undo(z, value.detach()), z)
            leaf, value = pullback.at(z)
            from_z = pullback.pull(leaf, value, iteration.where(number, beta * of_y, 0))
            y = iteration.where(number, iteration.undo(y, value.detach()), y)
            of_z = iteration.where(number, (1 - beta) * of_z, of_z) + from_z
            of_y = iteration.where(number, (1 - beta) * of_y, of_y)
            if iteration.begins_at(number):
                *kept, y0, z0 = kept
                missed = torch.maximum((y - y0).norm(), (z - z0).norm()) / (1e-5 + size)
                error, y, z = torch.maximum(error, missed), y0, z0
        iteration.reconstruction_error.copy_(error)
        if not error <= ctx.bound:
            raise ReconstructionError(
                f"walking back {steps} steps of beta {beta} missed the start by {error:.2g} of the state's size, more "
                f"than {ctx.bound:g}, so gradients would be wrong: take fewer steps, a smaller beta, keep_every, "
                "states in fp64 or backward=checkpoint, and see that f has no randomness of its own, such as dropout"
            )
        return None, None, None, None, of_y + of_z, *pullback.gradients
