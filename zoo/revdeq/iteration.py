"""The reversible fixed-point iteration.

McCallum et al. 2025, https://arxiv.org/abs/2509.12917. From y = z = z0, N times

    y <- (1 - b) y + b f(z, x)
    z <- (1 - b) z + b f(y, x);

where it comes to rest, y = z = f(z, x). Each line can be solved for what it replaced: see reversible.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Function = Callable[[Tensor, tuple[Tensor, ...]], Tensor]  # f(z, inputs)
Evaluate = Callable[[Tensor], Tensor]  # a state to f of it, in the state's dtype


class Autocast:
    """The autocast of the moment when this is made, to be entered again: a backward pass runs without.

    But without its cache of weights, in whose 16 bits the gradients of all evaluations would be added up.
    """

    def __init__(self, device: str) -> None:
        self.device, self.enabled = device, torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device)

    def __call__(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, self.enabled, cache_enabled=False)


def evaluator(f: Function, inputs: tuple[Tensor, ...], autocast: Autocast) -> Evaluate:
    """f(., inputs) on states: it computes in the first input's dtype, whatever the state's."""

    def evaluate(state: Tensor) -> Tensor:
        with autocast():
            return f(state.to(inputs[0].dtype), inputs).to(state.dtype)

    return evaluate


def relative_residual(z: Tensor, fz: Tensor) -> Tensor:
    """|z - f(z)| / (1e-5 + |f(z)|) of each sample of z (B, ...): (B,)."""
    gap, size = (t.reshape(len(t), -1).norm(dim=1) for t in (z - fz, fz))
    return gap / (1e-5 + size)


@dataclass
class Iteration:
    """How f is iterated, and what there is to report of it afterwards."""

    beta: float
    max_steps: int
    tol: float | None = None
    checkpointed: bool = False  # keep each step's states only, and compute it again in the backward pass
    keep_every: int | None = None  # keep y and z before the first step and before every so many further
    kept: list[Tensor] = field(default_factory=list)
    steps: Tensor = field(default_factory=lambda: torch.tensor(0))
    evaluations: int = 0
    residual: Tensor | None = None  # where a tolerance asked for it
    reconstruction_error: Tensor = field(default_factory=lambda: torch.tensor(torch.nan))

    def relax(self, old: Tensor, new: Tensor) -> Tensor:
        return (1 - self.beta) * old + self.beta * new

    def undo(self, now: Tensor, new: Tensor) -> Tensor:
        """What was `old` when `relax(old, new)` gave `now`."""
        return (now - self.beta * new) / (1 - self.beta)

    def step(self, evaluate: Evaluate, y: Tensor, z: Tensor, fz: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = self.relax(y, evaluate(z) if fz is None else fz)
        return y, self.relax(z, evaluate(y))

    def where(self, number: int, new: Tensor, old: Tensor | float) -> Tensor:
        """`new` for the samples that made step `number`, `old` for those at rest before it."""
        if self.tol is None:
            return new
        return torch.where((self.steps >= number).view(-1, *[1] * (new.ndim - 1)), new, old)

    def begins_at(self, number: int) -> bool:
        """Whether the states before step `number` are kept."""
        return self.keep_every is not None and (number - 1) % self.keep_every == 0

    def keep(self, number: int, y: Tensor, z: Tensor) -> None:
        if self.begins_at(number):
            self.kept += y, z

    def run(self, evaluate: Evaluate, z0: Tensor) -> tuple[Tensor, Tensor]:
        """y and z after max_steps steps from z0 (B, ...), or after as many as each sample needs to reach tol."""
        y = z = z0
        if self.tol is not None:
            return self._to_tolerance(evaluate, y, z, self.tol)
        for number in range(1, self.max_steps + 1):
            self.keep(number, y, z)
            if self.checkpointed:
                y, z = checkpoint(self.step, evaluate, y, z, use_reentrant=False, preserve_rng_state=False)
            else:
                y, z = self.step(evaluate, y, z)
        self.steps, self.evaluations = torch.tensor(self.max_steps), 2 * self.max_steps
        return y, z

    def _to_tolerance(self, evaluate: Evaluate, y: Tensor, z: Tensor, tol: float) -> tuple[Tensor, Tensor]:
        self.steps = torch.ones(len(z), dtype=torch.long, device=z.device)
        fz = evaluate(z)
        for number in range(1, self.max_steps + 1):
            self.keep(number, y, z)
            # All samples are evaluated, also those at rest, so that the way back meets the same batch.
            ahead = self.step(evaluate, y, z, fz)
            y, z = self.where(number, ahead[0], y), self.where(number, ahead[1], z)
            fz = evaluate(z)  # what the next step begins with
            self.residual, self.evaluations = relative_residual(z, fz), 2 * number + 1
            going = (self.steps == number) & ~(self.residual <= tol)
            if number == self.max_steps or not going.any():
                break
            self.steps += going
        return y, z
