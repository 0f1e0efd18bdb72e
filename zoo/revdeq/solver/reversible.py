"""Backpropagation through the reversible iteration, by walking it back.

From the last y and z, the states before them are (McCallum et al. 2025, https://arxiv.org/abs/2509.12917)

    z' = (z - b f(y, x)) / (1 - b)
    y' = (y - b f(z', x)) / (1 - b),

and differentiating f at y and z' on the way gives the gradients of the very iteration that was run. Kept are x, the
start, y and z, whatever the number of steps. Dividing by 1 - b magnifies rounding at every step; hence states in fp64
while f computes in x's dtype, and f called the same way in both passes, so that its own rounding returns and cancels.
Where that is not enough, the way back begins anew at states kept every so many steps.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.revdeq.solver.iteration import Autocast, Function, Iteration, Report, undo
from zoo.revdeq.solver.pullback import Pullback


class ReconstructionError(ValueError):
    """Walking the iteration back did not end where it began, so its gradients would be wrong."""


class Reversible(torch.autograd.Function):
    """apply(f, (iteration, report, keep_every, bound), how many inputs, z0, *inputs, *parameters) -> z.

    Parameters are inputs and their gradients outputs, because an inner backward() would go past
    DistributedDataParallel.
    """

    @staticmethod
    def forward(
        ctx, f: Function, settings: tuple[Iteration, Report, int, float], n: int, z0: Tensor, *leaves: Tensor
    ) -> Tensor:
        ctx.f, ctx.settings, ctx.n, ctx.autocast = f, settings, n, Autocast(z0.device.type)
        iteration, report, every, _ = settings
        kept: list[Tensor] = []

        def keep(number: int, y: Tensor, z: Tensor) -> None:
            if (number - 1) % every == 0:
                kept.extend((y, z))

        value = Pullback(f, leaves[:n], leaves[n:], ctx.autocast, z0.dtype).value
        y, z = iteration.run(value, z0, report, keep)
        ctx.kept = len(kept)
        ctx.save_for_backward(y, z, *kept, *leaves)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        y, z, *saved = ctx.saved_tensors
        kept, leaves = saved[: ctx.kept], saved[ctx.kept :]
        iteration, report, every, bound = ctx.settings
        beta, steps = iteration.beta, int(report.steps.max())
        pullback = Pullback(ctx.f, leaves[: ctx.n], leaves[ctx.n :], ctx.autocast, z.dtype)
        size, of_y, of_z = z.norm(), torch.zeros_like(grad), grad
        error = torch.zeros_like(size)
        for number in range(steps, 0, -1):

            def made(new: Tensor, old: Tensor | float, number: int = number) -> Tensor:
                return iteration.where(report, number, new, old)

            leaf, value = pullback.at(y)
            of_y = of_y + pullback.pull(leaf, value, made(beta * of_z, 0))
            z = made(undo(beta, z, value.detach()), z)
            leaf, value = pullback.at(z)
            from_z = pullback.pull(leaf, value, made(beta * of_y, 0))
            y = made(undo(beta, y, value.detach()), y)
            of_z = made((1 - beta) * of_z, of_z) + from_z
            of_y = made((1 - beta) * of_y, of_y)
            if (number - 1) % every == 0:
                *kept, y_then, z_then = kept
                missed = torch.maximum((y - y_then).norm(), (z - z_then).norm()) / (1e-5 + size)
                error, y, z = torch.maximum(error, missed), y_then, z_then
        report.reconstruction_error.copy_(error)
        # A state that is not finite is another matter: the loss tells, and fp16's scaler leaves the step out.
        if size.isfinite() and not error <= bound:
            raise ReconstructionError(
                f"walking back {steps} steps of beta {beta} missed the start by {error:.2g} of the state's size, more "
                f"than {bound:g}, so gradients would be wrong: take fewer steps, a smaller beta, keep_every, "
                "states in fp64 or backward=checkpoint, and see that f has no randomness of its own, such as dropout"
            )
        return None, None, None, of_y + of_z, *pullback.gradients
