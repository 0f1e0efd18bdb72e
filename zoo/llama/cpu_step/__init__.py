"""The decoding step of a Llama on a CPU in C (`step.c`), compiled at first use, and called with torch's tensors."""

from zoo.llama.cpu_step.library import CompilerMissing
from zoo.llama.cpu_step.step import CpuStep

__all__ = ["CompilerMissing", "CpuStep"]
