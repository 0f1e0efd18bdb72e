"""Optimizers and learning-rate schedules."""

from zoo.optim.adamw import AdamW
from zoo.optim.muon import MuonAdamW
from zoo.optim.schedule import warmup_cosine

__all__ = ["AdamW", "MuonAdamW", "warmup_cosine"]
