"""Llama: the network and its checkpoints, and the LightningModules LlamaLM and LlamaClassifier.

The modules are imported when first used, because they load Lightning.
"""

from typing import TYPE_CHECKING

from zoo.llama.checkpoints import load_checkpoint, save_checkpoint
from zoo.llama.model import Llama, LlamaConfig
from zoo.registry import imported_on_use

if TYPE_CHECKING:
    from zoo.llama.classifier import LlamaClassifier
    from zoo.llama.module import LlamaLM
    from zoo.llama.zero_shot import LlamaZeroShot

__all__ = ["Llama", "LlamaClassifier", "LlamaConfig", "LlamaLM", "LlamaZeroShot", "load_checkpoint", "save_checkpoint"]

__getattr__ = imported_on_use(
    __name__,
    {
        "LlamaClassifier": "zoo.llama.classifier",
        "LlamaLM": "zoo.llama.module",
        "LlamaZeroShot": "zoo.llama.zero_shot",
    },
)
