"""`solve`: iterate z = f(z, x), with a choice of gradient methods."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from zoo.errors import check_counts, check_positive
from zoo.revdeq.solver.diagnostics import Diagnostics, relative_residual
from zoo.revdeq.solver.evaluation import BoundModule, Function, SavedAutocast, make_evaluate
from zoo.revdeq.solver.fixed_point import find_fixed_point
from zoo.revdeq.solver.implicit import Implicit
from zoo.revdeq.solver.iteration import Iteration, relax
from zoo.revdeq.solver.requirements import (
    Unchanged,
    check_inputs,
    refuse_changing_state,
    refuse_inference_tensors,
    refuse_transforms,
)
from zoo.revdeq.solver.reversible import MAX_ERROR, Reversible
from zoo.revdeq.solver.settings import Backward, Solver, check_settings, warn_of_rounding

PHANTOM_STEPS, IMPLICIT_STEPS = 5, 50  # defaults of backward_steps


@dataclass(frozen=True)
class Solution:
    """Result of `solve`.

    Attributes:
        z: the last state, of z0's shape and x's dtype.
        steps: number of steps: (), or with a tolerance or another solver (B,), one per sample.
        evaluations: number of evaluations of f in the forward pass.
        reconstruction_error: () distance between z0 and the end of the reversible backward pass, relative to the norm
            of z; NaN until that pass has run, and with other methods.
        failure: () this error where it exceeds max_reconstruction_error; otherwise 0.
    """

    z: Tensor
    steps: Tensor
    evaluations: int
    reconstruction_error: Tensor
    failure: Tensor
    _residual: Callable[[], Tensor]

    @cached_property
    def residual(self) -> Tensor:
        """|z - f(z, x)| / (1e-5 + |f(z, x)|) of each sample, (B,).

        Without a tolerance the first access evaluates f once.
        """
        return self._residual()


def solve(
    f: nn.Module,
    x: Tensor | tuple[Tensor, ...],
    z0: Tensor | None = None,
    *,
    beta: float = 0.5,
    max_steps: int = 4,
    tol: float | None = None,
    backward: Backward = "reversible",
    state_dtype: torch.dtype = torch.float64,
    solver: Solver = "reversible",
    backward_steps: int | None = None,
    keep_every: int | None = None,
    max_reconstruction_error: float = MAX_ERROR,
) -> Solution:
    """Iterate f(z, x) from z0 towards its fixed point.

    The reversible iteration and its gradients are those of McCallum et al. 2025, https://arxiv.org/abs/2509.12917.

    Args:
        f: a module, called f(z, x), that returns z's shape. Its parameters and x receive gradients. With "reversible",
            "checkpoint" and "implicit" the backward pass calls f again with the same parameters and buffers: f must
            then return the same values, so it may neither draw random numbers (pass dropout masks in x) nor change its
            buffers (BatchNorm and spectral norm in training mode do), which is checked. State that f keeps elsewhere
            (numbers and lists in attributes, random numbers of NumPy) and changes of parameters through `.data`, which
            autograd does not notice, are not checked. The backward pass uses the modes (`train()`, `eval()`) that f
            had in `solve`. With "reversible" and "implicit" every other tensor that f uses and that needs a gradient
            must be in x. Hooks on parameters run once, those on modules at every evaluation.
        x: a tensor (B, ...), or a tuple of tensors that begins with such a tensor. f computes in its dtype.
        z0: the first state (B, ...); None: zeros of the shape of x, or of its first tensor.
        beta: share of f in every half-step, in (0, 2) and not 1.
        max_steps: N, the number of steps. The reversible iteration evaluates f twice a step, the other solvers once.
        tol: stop a sample where its relative residual is at most this; None: N steps for every sample. A sample is
            z[i]; for a sequence, later tokens then influence how long earlier ones are iterated.
        backward: gradient method. "reversible" inverts the iteration: the gradients of unrolling, in memory that does
            not grow with N. "unroll" is ordinary backpropagation, "checkpoint" saves only the states of each step.
            Only "unroll" has second derivatives and works under torch.func.grad, vmap and jvp.
            "implicit" treats z as a fixed point; "phantom" differentiates through a few more damped steps from it (Geng
            et al. 2021, https://arxiv.org/abs/2111.05177). The last two are approximate where z is not a fixed point.
        state_dtype: dtype of z during the iteration; fp32 on a device without fp64.
        solver: solver for z with "implicit" and "phantom"; the other methods use the reversible iteration.
        backward_steps: steps of the backward pass: of "implicit" at most this many, until its residual is at most tol,
            or 1e-8 (default 50); of "phantom" exactly this many (default 5).
        keep_every: with "reversible", save the state every keep_every steps, so that at most keep_every steps are
            inverted in one go; for many steps, or beta far from 0.5. None: save z0 only.
        max_reconstruction_error: beyond this error the reversible backward pass raises ReconstructionError on a CPU. On
            a GPU, where the host would have to wait for the error, all its gradients are NaN, and `failure` is the
            error.

    Returns:
        The last state with diagnostics, see `Solution`.

    Raises:
        UserError: a setting is out of range or cannot be combined with another one, x or z0 has a wrong shape or type,
            or the backward pass would compute wrong gradients of f.
        ReconstructionError: see max_reconstruction_error; raised by the backward pass.
    """
    # Check the settings, x and z0.
    check_settings(beta, tol, backward, solver, keep_every, backward_steps)
    check_counts(max_steps=max_steps)
    check_positive("max_reconstruction_error", max_reconstruction_error)
    inputs = check_inputs(f, x, z0, state_dtype)
    if state_dtype == torch.float64 and inputs[0].device.type == "mps":  # Metal lacks fp64
        state_dtype = torch.float32
    # The iteration starts at zero unless it is given a start, and runs in the state's dtype.
    z0 = torch.zeros_like(inputs[0], dtype=state_dtype) if z0 is None else z0.to(state_dtype)
    # Gradients are computed only if autograd is on and something requires them.
    bound = BoundModule(f, isinstance(x, tuple)) if isinstance(f, nn.Module) else None
    tensors = () if bound is None else bound.tensors
    tracked = torch.is_grad_enabled() and any(t.requires_grad for t in (z0, *inputs, *tensors))
    if not (backward == "unroll" or (not tracked and tol is None and solver == "reversible")):
        refuse_transforms(backward, (z0, *inputs, *tensors))
    if tracked:
        refuse_inference_tensors((z0, *inputs, *tensors))
    autocast = SavedAutocast(z0.device.type)
    call: Function = f if isinstance(x, tuple) else lambda z, inputs: f(z, *inputs)
    evaluate = make_evaluate(call, inputs, autocast, state_dtype)
    # Evaluations after this call use the present parameters and buffers, even if those of f change later.
    later = evaluate
    if bound is not None:
        later = make_evaluate(lambda z, inputs: bound(z, inputs, tensors), inputs, autocast, state_dtype)
    diagnostics = Diagnostics.on(z0.device)
    iteration = Iteration(beta, max_steps, tol, checkpointed=tracked and backward == "checkpoint")

    # Forward: find z, recorded by autograd with "unroll" and "checkpoint", inside a Function with "reversible". Where
    # the backward pass evaluates f again, f must return the same values then.
    is_repeated = tracked and backward in ("reversible", "checkpoint", "implicit")
    with refuse_changing_state(bound, z0.device, backward) if is_repeated else nullcontext():
        if tracked and backward == "reversible":
            # Without keep_every, or with at least N, only the start is saved.
            every = min(keep_every or max_steps, max_steps)
            if tol is None:
                warn_of_rounding(beta, every, state_dtype, max_reconstruction_error)
            settings = iteration, diagnostics, every, max_reconstruction_error
            z = Reversible.apply(bound, settings, len(inputs), z0, *inputs, *tensors)
        elif tracked and backward == "checkpoint":
            repeatable = Unchanged(later, (z0, *inputs, *tensors))
            _, z = iteration.run(repeatable, z0, diagnostics)
            repeatable.finish()
        elif tracked and backward == "unroll":
            _, z = iteration.run(evaluate, z0, diagnostics)
        else:
            with torch.no_grad():
                if solver == "reversible":
                    _, z = iteration.run(evaluate, z0, diagnostics)
                else:
                    z = find_fixed_point(solver, evaluate, z0, iteration, diagnostics)

    # Attach gradients to a z that was found without them.
    if tracked and backward == "implicit":
        adjoint_solver = "plain" if solver == "reversible" else solver
        adjoint = Iteration(beta, backward_steps or IMPLICIT_STEPS, 1e-8 if tol is None else tol)
        z = Implicit.apply(bound, adjoint_solver, adjoint, len(inputs), z, *inputs, *tensors)
    if tracked and backward == "phantom":
        # A few damped steps from z, recorded by autograd.
        phantom = z
        for _ in range(backward_steps or PHANTOM_STEPS):
            phantom = relax(beta, phantom, evaluate(phantom))
        z = z + (phantom - phantom.detach())  # the value of z with the gradient of the phantom steps

    # The residual of the last state is computed on demand: it may cost an evaluation of f.
    final, known_residual = z.detach(), diagnostics.residual

    @torch.no_grad()
    def residual() -> Tensor:
        return relative_residual(final, later(final)) if known_residual is None else known_residual

    z = z.to(inputs[0].dtype)
    d = diagnostics
    return Solution(z, d.steps, d.evaluations, d.reconstruction_error, d.failure, residual)
