"""Reversible deep equilibrium language model: solver, network and, imported on first use, its LightningModule."""

from typing import TYPE_CHECKING

from zoo.registry import imported_on_use
from zoo.revdeq.model import RevDEQ, RevDEQConfig
from zoo.revdeq.solver import ReconstructionError, Solution, solve

if TYPE_CHECKING:
    from zoo.revdeq.module import RevDEQLM

__all__ = ["ReconstructionError", "RevDEQ", "RevDEQConfig", "RevDEQLM", "Solution", "solve"]

__getattr__ = imported_on_use(__name__, {"RevDEQLM": "zoo.revdeq.module"})
