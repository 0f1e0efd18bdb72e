"""Optimizers and learning-rate schedules."""

from zoo.optim.adamw import AdamW
from zoo.optim.muon import MuonAdamW
from zoo.optim.schedule import triangle, warmup_cosine

__all__ = ["AdamW", "MuonAdamW", "triangle", "warmup_cosine"]
