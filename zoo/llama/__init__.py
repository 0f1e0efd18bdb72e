"""Llama: the network and its checkpoints, and the LightningModules LlamaLM and LlamaClassifier.

The modules are imported when first used, because they load Lightning.
"""

from typing import TYPE_CHECKING, Any

from zoo.llama.checkpoints import load_checkpoint, save_checkpoint
from zoo.llama.model import Llama, LlamaConfig

if TYPE_CHECKING:
    from zoo.llama.classifier import LlamaClassifier
    from zoo.llama.module import LlamaLM
    from zoo.llama.zero_shot import LlamaZeroShot

__all__ = ["Llama", "LlamaClassifier", "LlamaConfig", "LlamaLM", "LlamaZeroShot", "load_checkpoint", "save_checkpoint"]


def __getattr__(name: str) -> Any:
    if name == "LlamaLM":
        from zoo.llama.module import LlamaLM

        return LlamaLM
    if name == "LlamaClassifier":
        from zoo.llama.classifier import LlamaClassifier

        return LlamaClassifier
    if name == "LlamaZeroShot":
        from zoo.llama.zero_shot import LlamaZeroShot

        return LlamaZeroShot
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
