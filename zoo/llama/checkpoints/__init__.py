"""Llama checkpoint formats."""

from zoo.llama.checkpoints.files import digest, new_or_loaded

__all__ = ["digest", "new_or_loaded"]
