"""Half precision where it pays: automatic mixed precision on a CUDA GPU, and nothing anywhere else."""

from typing import Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.precision import Precision

_LIGHTNING_NAME = {"fp16": "16-mixed", "bf16": "bf16-mixed"}


class Half(Callback):
    """Train in fp16 (with a gradient scaler) or bf16 autocast on the devices where that is faster.

    An explicit `--trainer.precision` wins, as does a strategy that brings its own precision (FSDP, DeepSpeed).
    The scaler's state is saved in checkpoints, and gradients are clipped after they are unscaled.

    Args:
        precision: "fp16", "bf16" or "off".
        devices: device types on which to act.
    """

    def __init__(
        self, precision: Literal["fp16", "bf16", "off"] = "fp16", devices: tuple[str, ...] = ("cuda",)
    ) -> None:
        self.precision = precision
        self.devices = devices

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Callbacks are set up before the strategy is, so a plugin placed now wraps model and optimizer as if
        # the Trainer had been given it.
        device = trainer.strategy.root_device.type
        if self.precision == "off" or device not in self.devices:
            return
        if type(trainer.precision_plugin) is not Precision:  # the user's choice, or the strategy's own
            return
        trainer.strategy.precision_plugin = MixedPrecision(_LIGHTNING_NAME[self.precision], device)  # type: ignore[arg-type]
