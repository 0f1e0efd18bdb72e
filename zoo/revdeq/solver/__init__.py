"""Fixed-point solver with exact gradients in memory that does not grow with the number of steps."""

from zoo.revdeq.solver.interface import Solution, solve
from zoo.revdeq.solver.reversible import ReconstructionError
from zoo.revdeq.solver.settings import Backward, Solver, check_settings

__all__ = ["Backward", "ReconstructionError", "Solution", "Solver", "check_settings", "solve"]
