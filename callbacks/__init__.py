"""Callbacks for any LightningModule. They import Lightning, and nothing of the zoo's models or data."""

from zoo.callbacks.budget import Budget
from zoo.callbacks.charts import Charts
from zoo.callbacks.checkpoint import Checkpoint
from zoo.callbacks.early_stopping import EarlyStopping
from zoo.callbacks.mixed_precision import MixedPrecision
from zoo.callbacks.non_finite import NonFinite
from zoo.callbacks.plots import Plots
from zoo.callbacks.predictions import Predictions
from zoo.callbacks.progress import Progress
from zoo.callbacks.samples import Samples
from zoo.callbacks.throughput import Throughput

__all__ = [
    "Budget", "Charts", "Checkpoint", "EarlyStopping", "MixedPrecision", "NonFinite", "Plots", "Predictions",
    "Progress", "Samples", "Throughput",
]  # fmt: skip
