"""Automatic mixed precision on the devices where it is faster: CUDA GPUs by default."""

from typing import ClassVar, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision as MixedPrecisionPlugin
from lightning.pytorch.plugins.precision import Precision

from zoo.private_apis.lightning_trainer import set_precision

_LIGHTNING_NAME = {"fp16": "16-mixed", "bf16": "bf16-mixed"}


class MixedPrecision(Callback):
    """Train and evaluate under autocast in fp16 (with a gradient scaler) or bf16 on the given devices.

    An explicit `--trainer.precision` wins, as does a strategy that sets its own precision (FSDP, DeepSpeed).
    The scaler's state is saved in checkpoints, and gradients are clipped after they are unscaled.

    Args:
        dtype: type of autocast: "fp16", "bf16" or "off".
        devices: device types on which autocast is used; on all others everything runs in fp32.
    """

    renamed_arguments: ClassVar[dict[str, str]] = {"precision": "dtype"}

    def __init__(self, dtype: Literal["fp16", "bf16", "off"] = "fp16", devices: tuple[str, ...] = ("cuda",)) -> None:
        self.dtype = dtype
        self.devices = devices

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Callbacks are set up before the strategy, so a plugin set now wraps model and optimizer as if the Trainer had
        # been given it.
        device = trainer.strategy.root_device.type
        if self.dtype == "off" or device not in self.devices:
            return
        if type(trainer.precision_plugin) is not Precision:  # set by the user or by the strategy
            return
        set_precision(trainer, MixedPrecisionPlugin(_LIGHTNING_NAME[self.dtype], device))  # type: ignore[arg-type]
