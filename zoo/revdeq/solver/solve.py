"""`solve`: the state z that f(z, x) is iterated to, and gradients of it by the method of one's choice."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.revdeq.solver.fixed_point import find
from zoo.revdeq.solver.implicit import Implicit
from zoo.revdeq.solver.iteration import Autocast, Iteration, Report, evaluator, relative_residual, relax
from zoo.revdeq.solver.reversible import Reversible

Backward = Literal["reversible", "unroll", "checkpoint", "implicit", "phantom"]
Solver = Literal["reversible", "plain", "anderson", "broyden"]
PHANTOM_STEPS, IMPLICIT_STEPS = 5, 50  # defaults of backward_steps


@dataclass(frozen=True)
class Solution:
    """What `solve` found.

    Attributes:
        z: the last state, of z0's shape and x's dtype.
        steps: how many steps were made: one number, or with a tolerance or another solver one a sample, (B,).
        evaluations: how often f was called for it.
        reconstruction_error: how far the reversible backward pass ended from z0, as a share of the size of z; NaN until
            that pass has run, and with other methods.
    """

    z: Tensor
    steps: Tensor
    evaluations: int
    reconstruction_error: Tensor
    _residual: Callable[[], Tensor]

    @cached_property
    def residual(self) -> Tensor:
        """|z - f(z, x)| / (1e-5 + |f(z, x)|) of each sample, (B,). Where no tolerance asked for it already, the first
        look costs one evaluation of f."""
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
    max_reconstruction_error: float = 1e-3,
) -> Solution:
    """Iterate f(z, x) from z0 towards its fixed point.

    Args:
        f: a module, called f(z, x), that returns z's shape. It is called again in the backward pass and must then give
            the same values: put dropout's masks into x. Gradients go to its parameters and x, and with "reversible"
            and "implicit" to no other tensor that it may hold or close over: hand these over in x.
        x: a tensor (B, ...), or a tuple of tensors that begins with such a one. f computes in its dtype.
        z0: the first state (B, ...); by default zeros of the shape of x, or of its first tensor.
        beta: how far each half-step goes towards f, in (0, 2) and not 1.
        max_steps: N. The reversible iteration evaluates f twice a step, the other solvers once.
        tol: stop a sample where its residual is at most this. A sample is all of z[i]: for a sequence that means that
            later tokens decide how far earlier ones are iterated. Without it every sample makes N steps: nothing leaks.
        backward: the gradients' way. "reversible" walks the iteration back: those of unrolling, in memory that does not
            grow with N. "unroll" keeps every state and all that f computed, "checkpoint" every state. "implicit" takes
            z for a fixed point, and "phantom" differentiates through a few more damped steps from it (Geng et al. 2021,
            https://arxiv.org/abs/2111.05177): both are approximate where z is no fixed point.
        state_dtype: of z on the way. fp32 where the device has no fp64.
        solver: the way to z for "implicit" and "phantom"; the others take the reversible iteration.
        backward_steps: of "implicit" (at most 50, until its own residual is at most tol, or 1e-8) and "phantom" (5).
        keep_every: of "reversible": keep the states before every so many steps, so that no way back is longer, for an N
            that would lose its digits otherwise; memory then grows by these. By default the start alone is kept.
        max_reconstruction_error: the reversible backward pass raises ReconstructionError beyond this.

    Raises:
        ValueError: settings that are out of range or do not go together.
    """
    check(beta, tol, backward, solver, keep_every, backward_steps)
    if max_steps < 1:
        raise UserError(f"max_steps must be at least 1, not {max_steps}")
    inputs, call = (x, f) if isinstance(x, tuple) else ((x,), lambda z, inputs: f(z, *inputs))
    if not inputs[0].is_floating_point():
        raise UserError(f"x must be of a floating-point dtype, in which f computes, not {inputs[0].dtype}")
    if torch.is_grad_enabled() and not isinstance(f, nn.Module):
        raise UserError("f must be an nn.Module: its parameters are what receives gradients")
    state_dtype = _held(state_dtype, inputs[0].device)
    z0 = torch.zeros_like(inputs[0], dtype=state_dtype) if z0 is None else z0.to(state_dtype)
    if len(z0) != len(inputs[0]):
        raise UserError(f"z0 has {len(z0)} samples, but x {len(inputs[0])}: they must be as many")
    parameters = [p for p in f.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
    tracked = torch.is_grad_enabled() and any(t.requires_grad for t in (z0, *inputs, *parameters))
    evaluate = evaluator(call, inputs, Autocast(z0.device.type), state_dtype)
    iteration, report = Iteration(beta, max_steps, tol, checkpointed=tracked and backward == "checkpoint"), Report()

    if tracked and backward == "reversible":
        every = min(keep_every or max_steps, max_steps)
        if tol is None:
            _warn_of_rounding(beta, every, state_dtype, max_reconstruction_error)
        settings = iteration, report, every, max_reconstruction_error
        z = Reversible.apply(call, settings, len(inputs), z0, *inputs, *parameters)
    elif tracked and backward in ("unroll", "checkpoint"):
        _, z = iteration.run(evaluate, z0, report)
    else:
        with torch.no_grad():
            if solver == "reversible":
                _, z = iteration.run(evaluate, z0, report)
            else:
                z = find(solver, evaluate, z0, iteration, report)
    if tracked and backward == "implicit":
        by = "plain" if solver == "reversible" else solver
        adjoint = Iteration(beta, backward_steps or IMPLICIT_STEPS, 1e-8 if tol is None else tol)
        z = Implicit.apply(call, by, adjoint, len(inputs), z, *inputs, *parameters)
    if tracked and backward == "phantom":
        ahead = z
        for _ in range(backward_steps or PHANTOM_STEPS):
            ahead = relax(beta, ahead, evaluate(ahead))
        z = z + (ahead - ahead.detach())  # the state stays, and has their gradient

    final, known = z.detach(), report.residual

    @torch.no_grad()
    def residual() -> Tensor:
        return relative_residual(final, evaluate(final)) if known is None else known

    found = z.to(inputs[0].dtype)
    return Solution(found, report.steps, report.evaluations, report.reconstruction_error, residual)


def check(
    beta: float,
    tol: float | None,
    backward: str,
    solver: str,
    keep_every: int | None = None,
    backward_steps: int | None = None,
) -> None:
    """Raise ValueError, in one sentence, for settings that are out of range or do not go together."""
    if not 0 < beta < 2 or beta == 1:
        raise UserError(f"beta must lie in (0, 2) and not be 1, at which a step cannot be undone; it is {beta}")
    if tol is not None and not 0 < tol < math.inf:
        raise UserError(f"the tolerance must be positive, or null for a fixed number of steps, not {tol}")
    for name, value, known in (("backward", backward, get_args(Backward)), ("solver", solver, get_args(Solver))):
        if value not in known:
            raise UserError(f"{name} is one of {', '.join(known)}, not {value!r}")
    if backward in ("unroll", "checkpoint") and tol is not None:
        raise UserError(f"a tolerance does not go with backward={backward}: drop one, or take backward=reversible")
    if backward not in ("implicit", "phantom") and solver != "reversible":
        raise UserError(f"solver={solver} needs backward=implicit or phantom; {backward} has its own iteration")
    for name, count, ways in (
        ("keep_every", keep_every, ("reversible",)),
        ("backward_steps", backward_steps, ("implicit", "phantom")),
    ):
        if count is not None and count < 1:
            raise UserError(f"{name} must be at least 1, or null, not {count}")
        if count is not None and backward not in ways:
            raise UserError(f"{name} needs backward={' or '.join(ways)}, not {backward}")


def _held(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The state's dtype, or fp32 where the device knows no fp64."""
    return torch.float32 if dtype == torch.float64 and device.type == "mps" else dtype


def _warn_of_rounding(beta: float, steps: int, dtype: torch.dtype, bound: float) -> None:
    """Every step back multiplies rounding by up to 1 / (1 - beta)^2."""
    a_step, room = -2 * math.log(abs(1 - beta)), math.log(bound / torch.finfo(dtype).eps)
    if steps * a_step > room:
        warnings.warn(
            f"{steps} steps of beta {beta} may lose more digits on the way back than {dtype} has: about "
            f"{int(room / a_step)} are safe, and keep_every makes the ways shorter; the reconstruction error tells",
            stacklevel=3,
        )
