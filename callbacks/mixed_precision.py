"""Automatic mixed precision on the devices where it is faster: CUDA GPUs by default."""

from typing import ClassVar, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision as MixedPrecisionPlugin
from lightning.pytorch.plugins.precision import Precision

from zoo.errors import check_choice
from zoo.private_apis.lightning_precision import mixed_precision_of
from zoo.private_apis.lightning_trainer import set_precision

DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "xla")  # torch's names of the types of Lightning's accelerators
_LIGHTNING_NAME: dict[str, Literal["16-mixed", "bf16-mixed"]] = {"fp16": "16-mixed", "bf16": "bf16-mixed"}


class MixedPrecision(Callback):
    """Train and evaluate under autocast in bf16, or in fp16 with a gradient scaler, on the given devices.

    An explicit `--trainer.precision` wins, as does a strategy that sets its own precision (FSDP, DeepSpeed).
    The scaler's state is saved in checkpoints, and gradients are clipped after they are unscaled.

    Args:
        dtype: type of autocast: "auto" (bf16 where the device has it, as CUDA GPUs from Ampere on do, otherwise fp16),
            "fp16", "bf16" or "off".
        devices: device types on which autocast is used; on all others everything runs in fp32.
        tf32: whether fp32 matrix products on a CUDA GPU use TF32, with 10 bits of mantissa instead of 23.
    """

    renamed_arguments: ClassVar[dict[str, str]] = {"precision": "dtype"}

    def __init__(
        self,
        dtype: Literal["auto", "fp16", "bf16", "off"] = "auto",
        devices: tuple[str, ...] = ("cuda",),
        tf32: bool = True,
    ) -> None:
        check_choice("mixed_precision.dtype", dtype, ("auto", *_LIGHTNING_NAME, "off"))
        for device in devices:
            check_choice("each of --mixed_precision.devices", device, DEVICES)
        self.dtype = dtype
        self.devices = devices
        self.tf32 = tf32

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pl_module.allow_tf32 = self.tf32  # type: ignore[assignment]  # read in a ZooModule's setup, which follows
        # Callbacks are set up before the strategy, so a plugin set now wraps model and optimizer as if the Trainer had
        # been given it.
        device = trainer.strategy.root_device.type
        if self.dtype == "off" or device not in self.devices:
            return
        if type(trainer.precision_plugin) is not Precision:  # set by the user or by the strategy
            return
        precision = mixed_precision_of(device) if self.dtype == "auto" else _LIGHTNING_NAME[self.dtype]
        set_precision(trainer, MixedPrecisionPlugin(precision, device))
