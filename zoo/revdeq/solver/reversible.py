"""Backpropagation through the reversible iteration by inverting it step by step.

From the last y and z, the states before them are (McCallum et al. 2025, https://arxiv.org/abs/2509.12917)

    z' = (z - b f(y, x)) / (1 - b)
    y' = (y - b f(z', x)) / (1 - b)

Differentiating f at y and z' along the way gives the gradients of the iteration that was run. Only x, z0 and the last y
and z are saved, for any number of steps. Dividing by 1 - b amplifies rounding at every step. Therefore states are
fp64 while f computes in x's dtype, and f is called the same way in both passes, so that its own rounding repeats and
cancels. Where that is not enough, states saved every few steps restart the inversion.
"""

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.revdeq.solver.diagnostics import Diagnostics
from zoo.revdeq.solver.evaluation import BoundModule, Differentiable, SavedAutocast
from zoo.revdeq.solver.iteration import Iteration, undo
from zoo.revdeq.solver.requirements import read_saved_tensors, refuse_second_derivatives

MAX_ERROR = 1e-3  # default of the largest reconstruction error


class ReconstructionError(UserError):
    """The inverted iteration did not end at its start, so the gradients would be wrong.

    Args:
        beta: beta of the iteration.
        steps: number of steps that were inverted.
        error: distance from the start, relative to the norm of the state.
        max_error: largest error allowed.
    """

    def __init__(self, beta: float, steps: int, error: float, max_error: float = MAX_ERROR) -> None:
        super().__init__(
            f"inverting {steps} steps of beta {beta} missed their start by {error:.2g} of the state's norm, more "
            f"than {max_error:g}, so gradients would be wrong: use fewer steps, a beta nearer 0.5, keep_every, "
            "fp64 states or backward=checkpoint, and make sure that f is deterministic (pass dropout masks in x)"
        )


class Reversible(torch.autograd.Function):
    """apply(f, (iteration, diagnostics, keep_every, max_error), number of inputs, z0, *inputs, *f.tensors) -> z.

    Parameters are inputs of the Function and their gradients its outputs, because DistributedDataParallel would not see
    an inner call of backward().
    """

    @staticmethod
    def forward(
        ctx, f: BoundModule, settings: tuple[Iteration, Diagnostics, int, float], n: int, z0: Tensor, *leaves: Tensor
    ) -> Tensor:
        ctx.f, ctx.settings, ctx.n, ctx.autocast = f, settings, n, SavedAutocast(z0.device.type)
        iteration, diagnostics, keep_every, _ = settings
        checkpoints: list[Tensor] = []  # y and z before every keep_every-th step, from the first

        def save(number: int, y: Tensor, z: Tensor) -> None:
            if (number - 1) % keep_every == 0:
                checkpoints.extend((y, z))

        # Run the iteration without a graph of the steps: the backward pass evaluates f again.
        value = Differentiable(f, n, leaves, ctx.autocast, z0.dtype).value
        y, z = iteration.run(value, z0, diagnostics, save)
        ctx.n_checkpoints = len(checkpoints)
        ctx.save_for_backward(y, z, *checkpoints, *leaves)
        return z

    @staticmethod
    def backward(ctx, grad: Tensor):
        refuse_second_derivatives("reversible")
        # Start from the last states; z receives the gradient of the loss, y only what later steps pass to it.
        y, z, *saved = read_saved_tensors(ctx)
        checkpoints, leaves = saved[: ctx.n_checkpoints], saved[ctx.n_checkpoints :]
        iteration, diagnostics, keep_every, max_error = ctx.settings
        beta, steps = iteration.beta, diagnostics.iterations
        f = Differentiable(ctx.f, ctx.n, leaves, ctx.autocast, z.dtype)
        size, y_grad, z_grad = z.norm(), torch.zeros_like(grad), grad
        # Go through the steps from the last to the first; samples that did not make a step keep their states.
        error = torch.zeros_like(size)
        for number in range(steps, 0, -1):

            def if_made(new: Tensor, old: Tensor | float, number: int = number) -> Tensor:
                return iteration.if_made(diagnostics, number, new, old)

            # Differentiate and undo z <- (1 - b) z + b f(y).
            leaf, value = f.record(y)
            y_grad = y_grad + f.vjp(leaf, value, if_made(beta * z_grad, 0))
            z = if_made(undo(beta, z, value.detach()), z)
            # Differentiate and undo y <- (1 - b) y + b f(z), at the z that was just restored.
            leaf, value = f.record(z)
            grad_through_f = f.vjp(leaf, value, if_made(beta * y_grad, 0))
            y = if_made(undo(beta, y, value.detach()), y)
            z_grad = if_made((1 - beta) * z_grad, z_grad) + grad_through_f
            y_grad = if_made((1 - beta) * y_grad, y_grad)
            # Where the forward pass saved this state: measure the error, and continue from the exact state.
            if (number - 1) % keep_every == 0:
                *checkpoints, exact_y, exact_z = checkpoints
                distance = torch.maximum((y - exact_y).norm(), (z - exact_z).norm()) / (1e-5 + size)
                error, y, z = torch.maximum(error, distance), exact_y, exact_z
        diagnostics.reconstruction_error.copy_(error)
        # If z is not finite the loss shows it, and fp16's gradient scaler skips the step.
        is_wrong = size.isfinite() & ~(error <= max_error)
        diagnostics.failure.copy_(torch.where(is_wrong, error, 0.0))
        gradients = [y_grad + z_grad, *f.gradients]
        if is_wrong.device.type == "cpu":
            if is_wrong:
                raise ReconstructionError(beta, steps, float(error), max_error)
        else:
            # Reading the error would make the host wait for the device at every step. No wrong gradient is used.
            factor = torch.where(is_wrong, torch.nan, 1.0)
            gradients = [None if gradient is None else gradient * factor for gradient in gradients]
        return None, None, None, *gradients
