"""MiniRLM: the network, and its LightningModule, imported on first use because it needs Lightning. See README.md."""

from typing import TYPE_CHECKING, Any

from zoo.mini_rlm.model import MiniRLMConfig, MiniRLMNetwork

if TYPE_CHECKING:
    from zoo.mini_rlm.module import MiniRLM

__all__ = ["MiniRLM", "MiniRLMConfig", "MiniRLMNetwork"]


def __getattr__(name: str) -> Any:
    if name == "MiniRLM":
        from zoo.mini_rlm.module import MiniRLM

        return MiniRLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
