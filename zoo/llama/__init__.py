"""Llama, from scratch: the model, its checkpoints, and (lazily, for it needs Lightning) its module."""

from typing import TYPE_CHECKING, Any

from zoo.llama.checkpoint import load_checkpoint, save_checkpoint
from zoo.llama.model import Llama, LlamaConfig

if TYPE_CHECKING:
    from zoo.llama.module import LlamaLM

__all__ = ["Llama", "LlamaConfig", "LlamaLM", "load_checkpoint", "save_checkpoint"]


def __getattr__(name: str) -> Any:
    if name == "LlamaLM":
        from zoo.llama.module import LlamaLM

        return LlamaLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
