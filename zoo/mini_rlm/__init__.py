"""MiniRLM: the network, and its LightningModule, imported on first use because it needs Lightning. See README.md."""

from typing import TYPE_CHECKING

from zoo.mini_rlm.model import MiniRLMConfig, MiniRLMNetwork
from zoo.registry import imported_on_use

if TYPE_CHECKING:
    from zoo.mini_rlm.module import MiniRLM

__all__ = ["MiniRLM", "MiniRLMConfig", "MiniRLMNetwork"]

__getattr__ = imported_on_use(__name__, {"MiniRLM": "zoo.mini_rlm.module"})
