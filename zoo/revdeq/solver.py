"""`solve`: the state z that f(z, x) is iterated to, and gradients of it by the method of one's choice."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from zoo.revdeq.fixed_point import find
from zoo.revdeq.implicit import Implicit
from zoo.revdeq.iteration import Autocast, Iteration, evaluator, relative_residual
from zoo.revdeq.reversible import Reversible

Backward = Literal["reversible", "unroll", "checkpoint", "implicit", "phantom"]
Solver = Literal["reversible", "plain", "anderson", "broyden"]
PHANTOM_STEPS, IMPLICIT_STEPS = 5, 50  # defaults of backward_steps


@dataclass(frozen=True)
class Solution:
    """What `solve` found.

    Attributes:
        z: the last state, of x's shape and dtype.
        steps: how many steps were made: one number, or with a tolerance one a sample, (B,).
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
        f: a module, called f(z, x), that returns z's shape and has no randomness of its own. The same f must give the
            same value in the backward pass: put dropout's masks into x.
        x: a tensor (B, ...), or a tuple whose first tensor gives z its shape, f its dtype and B, the samples.
        z0: the first state (B, ...); zeros by default.
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
        backward_steps: of "implicit" (50, at most) and "phantom" (5).
        keep_every: of "reversible": keep the states before every so many steps, so that no way back is longer, for an N
            that would lose its digits otherwise; memory then grows by these. By default the start alone is kept.
        max_reconstruction_error: the reversible backward pass raises ReconstructionError beyond this.

    Raises:
        ValueError: settings that are out of range or do not go together.
    """
    check(beta, tol, backward, solver)
    for name, value in (("max_steps", max_steps), ("backward_steps", backward_steps), ("keep_every", keep_every)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    inputs = x if isinstance(x, tuple) else (x,)
    call = f if isinstance(x, tuple) else lambda z, inputs: f(z, *inputs)
    state_dtype = _held(state_dtype, inputs[0].device)
    z0 = torch.zeros_like(inputs[0], dtype=state_dtype) if z0 is None else z0.to(state_dtype)
    if z0.shape != inputs[0].shape:
        raise ValueError(f"z0 has the shape {tuple(z0.shape)}, but x {tuple(inputs[0].shape)}: they must be the same")
    parameters = [p for p in f.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
    tracked = torch.is_grad_enabled() and any(t.requires_grad for t in (z0, *inputs, *parameters))
    evaluate = evaluator(call, inputs, Autocast(z0.device.type))
    iteration = Iteration(beta, max_steps, tol, checkpointed=tracked and backward == "checkpoint")

    if tracked and backward == "reversible":
        iteration.keep_every = min(keep_every or max_steps, max_steps)
        _warn_of_rounding(beta, iteration.keep_every, state_dtype)
        z = Reversible.apply(call, iteration, max_reconstruction_error, len(inputs), z0, *inputs, *parameters)
    elif tracked and backward in ("unroll", "checkpoint"):
        _, z = iteration.run(evaluate, z0)
    else:
        with torch.no_grad():
            z = iteration.run(evaluate, z0)[1] if solver == "reversible" else find(solver, evaluate, z0, iteration)
    if tracked and backward == "implicit":
        by = "plain" if solver == "reversible" else solver
        adjoint = Iteration(beta, backward_steps or IMPLICIT_STEPS, 1e-8 if tol is None else tol)
        z = Implicit.apply(call, by, adjoint, len(inputs), z, *inputs, *parameters)
    if tracked and backward == "phantom":
        for _ in range(backward_steps or PHANTOM_STEPS):
            z = iteration.relax(z, evaluate(z))

    final, known = z.detach(), iteration.residual

    @torch.no_grad()
    def residual() -> Tensor:
        return relative_residual(final, evaluate(final)) if known is None else known

    found = z.to(inputs[0].dtype)
    return Solution(found, iteration.steps, iteration.evaluations, iteration.reconstruction_error, residual)


def check(beta: float, tol: float | None, backward: str, solver: str) -> None:
    """Raise ValueError, in one sentence, for settings that are out of range or do not go together."""
    if not 0 < beta < 2 or beta == 1:
        raise ValueError(f"beta must lie in (0, 2) and not be 1, at which a step cannot be undone; it is {beta}")
    if tol is not None and not 0 < tol < math.inf:
        raise ValueError(f"the tolerance must be positive, or null for a fixed number of steps, not {tol}")
    for name, value, known in (("backward", backward, get_args(Backward)), ("solver", solver, get_args(Solver))):
        if value not in known:
            raise ValueError(f"{name} is one of {', '.join(known)}, not {value!r}")
    if backward in ("unroll", "checkpoint") and tol is not None:
        raise ValueError(f"a tolerance does not go with backward={backward}: drop one, or take backward=reversible")
    if backward not in ("implicit", "phantom") and solver != "reversible":
        raise ValueError(f"solver={solver} needs backward=implicit or phantom; {backward} has its own iteration")


def _held(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The state's dtype, or fp32 where the device knows no fp64."""
    return torch.float32 if dtype == torch.float64 and device.type == "mps" else dtype


def _warn_of_rounding(beta: float, max_steps: int, dtype: torch.dtype) -> None:
    """Every step back multiplies rounding by up to 1 / (1 - beta)^2."""
    eps, growth = torch.finfo(dtype).eps, max(1.0, abs(1 - beta) ** -2)
    if eps * growth**max_steps > 1e-2:
        most = int(math.log(1e-2 / eps, growth))
        warnings.warn(
            f"{max_steps} steps of beta {beta} may lose more digits on the way back than {dtype} has: "
            f"about {most} steps are safe; the reconstruction error tells",
            stacklevel=3,
        )
