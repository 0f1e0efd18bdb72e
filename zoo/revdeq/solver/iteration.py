"""The reversible fixed-point iteration.

McCallum et al. 2025, https://arxiv.org/abs/2509.12917. From y = z = z0, N times

    y <- (1 - b) y + b f(z, x)
    z <- (1 - b) z + b f(y, x)

At a fixed point y = z = f(z, x). Each line can be solved for the value that it replaced: see reversible.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zoo.revdeq.solver.diagnostics import Diagnostics, relative_residual
from zoo.revdeq.solver.evaluation import Evaluate

States = Iterator[tuple[Tensor, Tensor]]  # y and z after each step


def relax(beta: float, old: Tensor, new: Tensor) -> Tensor:
    """(1 - beta) old + beta new."""
    return (1 - beta) * old + beta * new


def undo(beta: float, relaxed: Tensor, new: Tensor) -> Tensor:
    """The value `old` for which relax(beta, old, new) is `relaxed`."""
    return (relaxed - beta * new) / (1 - beta)


def step(beta: float, evaluate: Evaluate, y: Tensor, z: Tensor, fz: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y and z after one step; `fz` is f(z) where it is known already."""
    y = relax(beta, y, evaluate(z) if fz is None else fz)
    return y, relax(beta, z, evaluate(y))


@dataclass(frozen=True)
class Iteration:
    """Settings of an iteration, and `run`.

    Args:
        beta: share of f in every half-step.
        max_steps: number of steps; with a tolerance the largest number.
        tol: a sample stops after the first step where its relative residual is at most this; None: it never stops
            early.
        checkpointed: autograd saves only the states of each step, and computes the rest again in the backward pass.
    """

    beta: float
    max_steps: int
    tol: float | None = None
    checkpointed: bool = False

    def run(
        self,
        evaluate: Evaluate,
        z0: Tensor,
        diagnostics: Diagnostics,
        before_step: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Iterate from y = z = z0.

        Args:
            evaluate: f(., x).
            z0: first state (B, ...).
            diagnostics: filled in.
            before_step: called with the number of each step, from 1, and y and z before it.

        Returns:
            The last y and z.
        """
        # The steps come one at a time, so that the caller can look at the states before each of them.
        y = z = z0
        if self.tol is None:
            steps = self._fixed(evaluate, y, z, diagnostics)
        else:
            steps = self._until_tolerance(evaluate, y, z, diagnostics, self.tol)
        for number, states in enumerate(steps, start=1):
            if before_step is not None:
                before_step(number, y, z)
            y, z = states
            diagnostics.iterations = number
        return y, z

    def _fixed(self, evaluate: Evaluate, y: Tensor, z: Tensor, diagnostics: Diagnostics) -> States:
        """max_steps steps."""
        diagnostics.steps, diagnostics.evaluations = torch.tensor(self.max_steps, device="cpu"), 2 * self.max_steps
        for _ in range(self.max_steps):
            if self.checkpointed:
                y, z = checkpoint(step, self.beta, evaluate, y, z, use_reentrant=False, preserve_rng_state=False)
            else:
                y, z = step(self.beta, evaluate, y, z)
            yield y, z

    def _until_tolerance(
        self, evaluate: Evaluate, y: Tensor, z: Tensor, diagnostics: Diagnostics, tol: float
    ) -> States:
        """Steps until every sample's residual is at most `tol`; a sample that has stopped keeps its states."""
        # Every sample makes the first step; f(z) is needed before it and, for the residual, after each step.
        diagnostics.steps, fz = torch.ones(len(z), dtype=torch.long, device=z.device), evaluate(z)
        for number in range(1, self.max_steps + 1):
            # Evaluate stopped samples too: the backward pass must see batches of the same shape.
            next_y, next_z = step(self.beta, evaluate, y, z, fz)
            y, z = self.if_made(diagnostics, number, next_y, y), self.if_made(diagnostics, number, next_z, z)
            yield y, z
            fz = evaluate(z)  # for the residual, and for the next step
            diagnostics.residual, diagnostics.evaluations = relative_residual(z, fz), 2 * number + 1
            # A sample goes on if it has made all steps so far and is not within the tolerance.
            continues = (diagnostics.steps == number) & ~(diagnostics.residual <= float(tol))
            if number == self.max_steps or not continues.any():
                return
            diagnostics.steps += continues

    def if_made(self, diagnostics: Diagnostics, number: int, new: Tensor, old: Tensor | float) -> Tensor:
        """`new` for samples that make step `number`, `old` for those that stopped before it."""
        if self.tol is None:
            return new
        return torch.where((diagnostics.steps >= number).view(-1, *[1] * (new.ndim - 1)), new, old)
