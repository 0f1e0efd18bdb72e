"""Reversible deep equilibrium language model: solver, network and, imported on first use, its LightningModule."""

from typing import TYPE_CHECKING, Any

from zoo.revdeq.model import RevDEQ, RevDEQConfig
from zoo.revdeq.solver import ReconstructionError, Solution, solve

if TYPE_CHECKING:
    from zoo.revdeq.module import RevDEQLM

__all__ = ["ReconstructionError", "RevDEQ", "RevDEQConfig", "RevDEQLM", "Solution", "solve"]


def __getattr__(name: str) -> Any:
    if name == "RevDEQLM":
        from zoo.revdeq.module import RevDEQLM

        return RevDEQLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
