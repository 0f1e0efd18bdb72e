"""The reversible fixed-point iteration.

McCallum et al. 2025, https://arxiv.org/abs/2509.12917. From y = z = z0, N times

    y <- (1 - b) y + b f(z, x)
    z <- (1 - b) z + b f(y, x);

where it comes to rest, y = z = f(z, x). Each line can be solved for what it replaced: see reversible.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from zoo.errors import UserError

Function = Callable[[Tensor, tuple[Tensor, ...]], Tensor]  # f(z, inputs)
Evaluate = Callable[[Tensor], Tensor]  # a state to f of it, in the state's dtype
States = Iterator[tuple[Tensor, Tensor]]  # y and z after each step


class Autocast:
    """The autocast of the moment when this is made, to be entered again: a backward pass runs without.

    But without its cache of weights, in whose 16 bits the gradients of all evaluations would be added up.
    """

    def __init__(self, device: str) -> None:
        self.device, self.enabled = device, torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device)

    def __call__(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, self.enabled, cache_enabled=False)


def evaluator(f: Function, inputs: tuple[Tensor, ...], autocast: Autocast, dtype: torch.dtype) -> Evaluate:
    """f(., inputs) on states: it computes in the first input's dtype, and its values come out in `dtype`."""

    def evaluate(state: Tensor) -> Tensor:
        with autocast():
            value = f(state.to(inputs[0].dtype), inputs)
        if value.shape != state.shape:
            shapes = f"{tuple(value.shape)} for a state of {tuple(state.shape)}"
            raise UserError(f"f gave a value of the shape {shapes}: they must be the same")
        return value.to(dtype)

    return evaluate


def relative_residual(z: Tensor, fz: Tensor) -> Tensor:
    """|z - f(z)| / (1e-5 + |f(z)|) of each sample of z (B, ...): (B,)."""
    gap, size = (per_sample_norm(t) for t in (z - fz, fz))
    return gap / (1e-5 + size)


def per_sample_norm(of: Tensor) -> Tensor:
    return of[:, None].flatten(1).norm(dim=1)


def relax(beta: float, old: Tensor, new: Tensor) -> Tensor:
    return (1 - beta) * old + beta * new


def undo(beta: float, now: Tensor, new: Tensor) -> Tensor:
    """What was `old` when `relax(beta, old, new)` gave `now`."""
    return (now - beta * new) / (1 - beta)


def step(beta: float, evaluate: Evaluate, y: Tensor, z: Tensor, fz: Tensor | None = None) -> tuple[Tensor, Tensor]:
    y = relax(beta, y, evaluate(z) if fz is None else fz)
    return y, relax(beta, z, evaluate(y))


@dataclass
class Report:
    """What an iteration tells of itself: how many steps each sample made, (B,), or all, (); how often f was evaluated;
    the residual (B,), where a tolerance asked for it; how far the way back missed the start, once it was walked."""

    steps: Tensor = field(default_factory=lambda: torch.tensor(0))
    evaluations: int = 0
    residual: Tensor | None = None
    reconstruction_error: Tensor = field(default_factory=lambda: torch.tensor(torch.nan))


@dataclass(frozen=True)
class Iteration:
    """How f is iterated: max_steps steps, or with a tolerance as many as each sample needs, at most max_steps.

    With `checkpointed` the backward pass of autograd keeps each step's states only, and computes the rest again.
    """

    beta: float
    max_steps: int
    tol: float | None = None
    checkpointed: bool = False

    def run(
        self, evaluate: Evaluate, z0: Tensor, report: Report, keep: Callable[[int, Tensor, Tensor], None] | None = None
    ) -> tuple[Tensor, Tensor]:
        """y and z after the steps from z0 (B, ...). `keep` is shown each step's number, from 1, and y and z before."""
        y = z = z0
        if self.tol is None:
            steps = self._fixed(evaluate, y, z, report)
        else:
            steps = self._to_tolerance(evaluate, y, z, report, self.tol)
        for number, following in enumerate(steps, start=1):
            if keep is not None:
                keep(number, y, z)
            y, z = following
        return y, z

    def _fixed(self, evaluate: Evaluate, y: Tensor, z: Tensor, report: Report) -> States:
        report.steps, report.evaluations = torch.tensor(self.max_steps), 2 * self.max_steps
        for _ in range(self.max_steps):
            if self.checkpointed:
                y, z = checkpoint(step, self.beta, evaluate, y, z, use_reentrant=False, preserve_rng_state=False)
            else:
                y, z = step(self.beta, evaluate, y, z)
            yield y, z

    def _to_tolerance(self, evaluate: Evaluate, y: Tensor, z: Tensor, report: Report, tol: float) -> States:
        report.steps, fz = torch.ones(len(z), dtype=torch.long, device=z.device), evaluate(z)
        for number in range(1, self.max_steps + 1):
            # All samples are evaluated, also those at rest: the way back, too, meets batches of one shape.
            ahead = step(self.beta, evaluate, y, z, fz)
            y, z = self.where(report, number, ahead[0], y), self.where(report, number, ahead[1], z)
            yield y, z
            fz = evaluate(z)  # what the next step begins with
            report.residual, report.evaluations = relative_residual(z, fz), 2 * number + 1
            going = (report.steps == number) & ~(report.residual <= tol)
            if number == self.max_steps or not going.any():
                return
            report.steps += going

    def where(self, report: Report, number: int, new: Tensor, old: Tensor | float) -> Tensor:
        """`new` for the samples that made step `number`, `old` for those at rest before it."""
        if self.tol is None:
            return new
        return torch.where((report.steps >= number).view(-1, *[1] * (new.ndim - 1)), new, old)
