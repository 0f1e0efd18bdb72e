"""Mini-RLM: the network, and (lazily, for it needs Lightning) its module. See README.md here."""

from typing import TYPE_CHECKING, Any

from zoo.mini_rlm.model import Reader, ReaderConfig

if TYPE_CHECKING:
    from zoo.mini_rlm.module import MiniRLM

__all__ = ["MiniRLM", "Reader", "ReaderConfig"]


def __getattr__(name: str) -> Any:
    if name == "MiniRLM":
        from zoo.mini_rlm.module import MiniRLM

        return MiniRLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
