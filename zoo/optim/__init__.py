"""Optimizers, learning-rate schedules and their settings."""

from zoo.optim.adamw import AdamW
from zoo.optim.config import OptimizerConfig
from zoo.optim.muon import MuonAdamW
from zoo.optim.resumed_schedule import ResumedSchedule
from zoo.optim.schedule import triangle, warmup_cosine

__all__ = ["AdamW", "MuonAdamW", "OptimizerConfig", "ResumedSchedule", "triangle", "warmup_cosine"]
