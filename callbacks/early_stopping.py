"""Early stopping. On resume the patience is the current setting, not the checkpoint's."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from zoo.callbacks.checkpoint import require_logged
from zoo.errors import UserError, check_choice, check_weight


class EarlyStopping(LightningEarlyStopping):
    """Stop after `patience` validations without an improvement of `monitor` on the fixed validation set.

    Args:
        monitor: name of the logged metric to watch.
        patience: number of validations without improvement before training stops, at least 1. Default: never stop.
        min_delta: smallest change that counts as an improvement, in the metric's unit; at least 0.
        mode: "min" where a lower metric is better, "max" where a higher one is.
    """

    def __init__(
        self, monitor: str = "val_loss", patience: int | None = None, min_delta: float = 0.0, mode: str = "min"
    ) -> None:
        check_choice("--early_stopping.mode", mode, ("min", "max"))
        if patience is not None and patience < 1:
            raise UserError(f"--early_stopping.patience must be at least 1, or null to never stop, not {patience}")
        check_weight("--early_stopping.min_delta", min_delta)
        self.enabled = patience is not None
        super().__init__(
            monitor, patience=patience or 1, min_delta=min_delta, mode=mode, check_on_train_epoch_end=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning would restore the checkpoint's patience over a changed one; only the count so far is restored here.
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.enabled:
            attached = trainer.callbacks  # type: ignore[attr-defined]
            n = sum(isinstance(callback, LightningEarlyStopping) for callback in attached)
            setting = "--early_stopping.monitor" if n == 1 else "the monitor of an EarlyStopping callback"
            require_logged(trainer, setting, self.monitor)
            super().on_validation_end(trainer, pl_module)
