"""Ways to a fixed point z = f(z), sample by sample, where nobody differentiates through the way.

plain      z <- (1 - b) z + b f(z)
anderson   the combination of the last states whose residual is least (Anderson 1965; Walker & Ni 2011,
           https://doi.org/10.1137/10078356X)
broyden    a quasi-Newton method for f(z) - z = 0 that corrects its inverse Jacobian by one rank at every step
           (Broyden 1965, https://doi.org/10.1090/S0025-5718-1965-0198670-6)
"""

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

from zoo.revdeq.solver.iteration import Evaluate, Iteration, Report, relative_residual, relax

MEMORY = 6  # states that Anderson's method combines, and corrections that Broyden's keeps
Points = Iterator[tuple[Tensor, Tensor]]


def plain(f: Evaluate, z: Tensor, beta: float) -> Points:
    """States z (B, n) with f(z), without end; so are the others."""
    while True:
        fz = f(z)
        yield z, fz
        z = relax(beta, z, fz)


def anderson(f: Evaluate, z: Tensor, beta: float) -> Points:
    states: list[Tensor] = []
    values: list[Tensor] = []
    while True:
        fz = f(z)
        yield z, fz
        states, values = [*states, z][-MEMORY:], [*values, fz][-MEMORY:]
        past, ahead = torch.stack(states, 1), torch.stack(values, 1)  # (B, m, n)
        gaps = ahead - past
        gram = gaps @ gaps.mT  # (B, m, m)
        # Of the weights that sum to 1, those of the least gap solve gram w ~ 1; the ridge is for gaps that repeat.
        digits = torch.finfo(z.dtype)
        ridge = 100 * digits.eps * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + digits.tiny
        gram = gram + ridge * torch.eye(len(states), dtype=z.dtype, device=z.device)
        weights = torch.linalg.solve(gram, torch.ones_like(gram[..., :1]))  # (B, m, 1)
        weights = weights / weights.sum(1, keepdim=True)
        z = (weights * relax(beta, past, ahead)).sum(1)


def broyden(f: Evaluate, z: Tensor, beta: float) -> Points:
    left: list[Tensor] = []
    right: list[Tensor] = []

    def product(columns: list[Tensor], rows: list[Tensor], vector: Tensor) -> Tensor:
        """(-1 + sum of columns rows^T) times vector (B, n): of left and right, the inverse Jacobian of f(z) - z."""
        return sum((u * (v * vector).sum(1, keepdim=True) for u, v in zip(columns, rows, strict=True)), -vector)

    fz = f(z)
    while True:
        yield z, fz
        gap = fz - z
        step = -product(left, right, gap)
        z = z + step
        fz = f(z)
        turn = fz - z - gap
        row = product(right, left, step)
        scale = (row * turn).sum(1, keepdim=True)  # 0 where a sample is at rest: it then keeps its Jacobian
        column = torch.where(scale == 0, 0, (step - product(left, right, turn)) / scale)
        left, right = [*left, column][-MEMORY:], [*right, row][-MEMORY:]


SOLVERS: dict[str, Callable[[Evaluate, Tensor, float], Points]] = {
    "plain": plain, "anderson": anderson, "broyden": broyden
}  # fmt: skip


def find(solver: str, f: Evaluate, z0: Tensor, iteration: Iteration, report: Report) -> Tensor:
    """The best state, sample by sample, that `solver` meets from z0 (B, ...) in the iteration's max_steps evaluations,
    or until every residual is within its tolerance."""

    def flat(rows: Tensor) -> Tensor:
        return f(rows.view_as(z0))[:, None].flatten(1)

    best = z0[:, None].flatten(1)  # (B, n)
    residual = torch.full_like(best[:, 0], torch.inf)
    steps = torch.zeros_like(residual, dtype=torch.long)
    tol = -1.0 if iteration.tol is None else iteration.tol
    for z, fz in islice(SOLVERS[solver](flat, best, iteration.beta), iteration.max_steps):
        report.evaluations += 1
        steps += ~(residual <= tol)
        now = relative_residual(z, fz)
        better = now < residual.masked_fill(residual <= tol, 0)  # a sample within the tolerance stays
        best, residual = torch.where(better[:, None], z, best), torch.where(better, now, residual)
        if (residual <= tol).all():
            break
    report.steps, report.residual = steps, residual
    return best.view_as(z0)
