"""Callback that keeps the best weights of a run in memory, for training without files."""

import math

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from zoo.callbacks.checkpoint import require_logged


class BestWeights(Callback):
    """Keep a copy of the weights with the lowest finite `monitor` of all validations, and all its values.

    Before the first such validation the copy holds the initial weights.

    Args:
        monitor: the logged metric to minimise.
    """

    def __init__(self, monitor: str = "val_loss") -> None:
        self.monitor = monitor
        self.values: list[float] = []
        self.weights: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require_logged(trainer, "monitor", self.monitor)
        value = trainer.callback_metrics[self.monitor].item()
        if value < min((v for v in self.values if not math.isnan(v)), default=math.inf):
            self._copy(pl_module)
        self.values.append(value)

    def _copy(self, module: LightningModule) -> None:
        self.weights = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    def restore(self, module: LightningModule) -> None:
        """Load the best weights into the module."""
        if self.weights:
            module.load_state_dict(self.weights)
