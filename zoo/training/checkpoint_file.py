"""Reading checkpoint files without executing code from them: zoo.files.checkpoints under its earlier name."""

from zoo.files.checkpoints import read_checkpoint

__all__ = ["read_checkpoint"]
