"""Fixed-point solvers for z = f(z), sample by sample, which are not differentiated through.

plain      z <- (1 - b) z + b f(z)
anderson   the combination of the last states with the smallest residual (Anderson 1965; Walker & Ni 2011,
           https://doi.org/10.1137/10078356X)
broyden    a quasi-Newton method for f(z) - z = 0 with a rank-one correction of the inverse Jacobian at every step
           (Broyden 1965, https://doi.org/10.1090/S0025-5718-1965-0198670-6)
"""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from zoo.revdeq.solver.diagnostics import Diagnostics, relative_residual
from zoo.revdeq.solver.evaluation import Evaluate
from zoo.revdeq.solver.iteration import Iteration, relax

MEMORY = 6  # number of states that Anderson's method combines, and of corrections that Broyden's method keeps
Points = Iterator[tuple[Tensor, Tensor]]


def plain(f: Evaluate, z: Tensor, beta: float) -> Points:
    """Damped iteration: yields states z (B, n) with f(z) (B, n), endlessly, as the other solvers do."""
    while True:
        fz = f(z)
        yield z, fz
        z = relax(beta, z, fz)


def anderson(f: Evaluate, z: Tensor, beta: float) -> Points:
    """Anderson acceleration."""
    states: list[Tensor] = []
    values: list[Tensor] = []
    while True:
        fz = f(z)
        yield z, fz
        # The residuals f(z) - z of the last m states, and their inner products.
        states, values = [*states, z][-MEMORY:], [*values, fz][-MEMORY:]
        inputs, outputs = torch.stack(states, 1), torch.stack(values, 1)  # (B, m, n)
        residuals = outputs - inputs
        gram = residuals @ residuals.mT  # (B, m, m)
        # Among weights that sum to 1, those with the smallest residual solve gram w ~ 1. The ridge keeps the system
        # solvable where residuals repeat.
        limits = torch.finfo(z.dtype)
        ridge = 100 * limits.eps * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + limits.tiny
        gram = gram + ridge * torch.eye(len(states), dtype=z.dtype, device=z.device)
        weights = torch.linalg.solve(gram, torch.ones_like(gram[..., :1]))  # (B, m, 1)
        weights = weights / weights.sum(1, keepdim=True)
        # The next state: the damped steps of all m states, combined with these weights.
        z = (weights * relax(beta, inputs, outputs)).sum(1)  # (B, n)


def broyden(f: Evaluate, z: Tensor, beta: float) -> Points:
    """Broyden's "good" method with limited memory; `beta` is not used."""
    left: list[Tensor] = []
    right: list[Tensor] = []

    def product(columns: list[Tensor], rows: list[Tensor], vector: Tensor) -> Tensor:
        """(-I + sum of columns rows^T) vector (B, n). With `left` and `right`: the inverse Jacobian of f(z) - z."""
        return sum((u * (v * vector).sum(1, keepdim=True) for u, v in zip(columns, rows, strict=True)), -vector)

    fz = f(z)
    while True:
        yield z, fz
        # A quasi-Newton step.
        residual = fz - z
        step = -product(left, right, residual)
        z = z + step
        fz = f(z)
        # Correct the inverse Jacobian by u v^T, so that it maps the change of the residual to the step.
        change = fz - z - residual
        row = product(right, left, step)
        scale = (row * change).sum(1, keepdim=True)  # 0 where a sample has converged: it keeps its Jacobian
        column = torch.where(scale == 0, 0, (step - product(left, right, change)) / scale)
        left, right = [*left, column][-MEMORY:], [*right, row][-MEMORY:]


SOLVERS: dict[str, Callable[[Evaluate, Tensor, float], Points]] = {
    "plain": plain, "anderson": anderson, "broyden": broyden
}  # fmt: skip


def find_fixed_point(solver: str, f: Evaluate, z0: Tensor, iteration: Iteration, diagnostics: Diagnostics) -> Tensor:
    """The state with the smallest residual, for each sample, that `solver` reaches from z0 (B, ...).

    A sample whose residual is never finite becomes NaN. The iteration ends after iteration.max_steps evaluations, or
    when every residual is within iteration.tol. After a single evaluation the result is f(z0), whose residual is not
    known, or z0 where it is within the tolerance.

    Args:
        solver: key of SOLVERS.
        f: the function.
        z0: first state (B, ...).
        iteration: beta, max_steps and tol.
        diagnostics: filled in.
    """

    def flat_f(rows: Tensor) -> Tensor:
        return f(rows.view_as(z0))[:, None].flatten(1)

    # Methods like Anderson's do not decrease the residual at every step, so remember each sample's best state.
    best = z0[:, None].flatten(1)  # (B, n)
    residual = torch.full_like(best[:, 0], torch.inf)  # (B,)
    steps = torch.zeros_like(residual, dtype=torch.long)
    stops, tol = iteration.tol is not None, -1.0 if iteration.tol is None else iteration.tol
    for z, fz in islice(SOLVERS[solver](flat_f, best, iteration.beta), iteration.max_steps):
        diagnostics.evaluations += 1
        # Count steps only for samples that are not within the tolerance (NaN is not).
        steps += ~(residual <= tol)
        new_residual = relative_residual(z, fz)
        is_better = new_residual < residual.masked_fill(residual <= tol, 0)  # a sample within the tolerance stays
        best = torch.where(is_better[:, None], z, best)
        residual = torch.where(is_better, new_residual, residual)
        if stops and (residual <= tol).all():  # waits for the device, which only a tolerance needs
            break
    # A sample without any finite evaluation has the result NaN, not z0.
    is_known = residual.isfinite()
    if iteration.max_steps == 1:
        best = torch.where((residual <= tol)[:, None], best, fz)
    best, residual = best.where(is_known[:, None], torch.nan), residual.where(is_known, torch.nan)
    diagnostics.steps, diagnostics.residual = steps, None if iteration.max_steps == 1 else residual
    return best.view_as(z0)
