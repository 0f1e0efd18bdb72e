"""Layers that several models share: one per file, each with its equation and source."""

from zoo.layers.attention import Attention
from zoo.layers.feed_forward import FeedForward
from zoo.layers.kv_cache import KVCache
from zoo.layers.rms_norm import RMSNorm
from zoo.layers.rotary import RotaryEmbedding

__all__ = ["Attention", "FeedForward", "KVCache", "RMSNorm", "RotaryEmbedding"]
