"""Callbacks shared by every model. They know Lightning, and nothing of the zoo's models or data."""

from callbacks.checkpoint import Checkpoint
from callbacks.early_stopping import EarlyStopping
from callbacks.half import Half
from callbacks.plots import Plots
from callbacks.predictions import Predictions
from callbacks.samples import Samples
from callbacks.throughput import Throughput

__all__ = ["Checkpoint", "EarlyStopping", "Half", "Plots", "Predictions", "Samples", "Throughput"]
