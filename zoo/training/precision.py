"""Precision of training: Lightning's precisions for every model, 16-bit formats by device, and TF32.

Lightning's plugins for true precisions cast the whole module, its metrics included, and every floating-point tensor of
a batch: in 16 bits the target 1234567 becomes infinite or 1236992. `TruePrecision` casts the weights only. Targets,
evaluation data and metrics keep their dtype, modules cast their inputs to the dtype of their weights, and losses are
computed in fp32, or in fp64 with fp64 weights.
"""

import warnings
from typing import Any

import torch
from lightning.pytorch.plugins.precision import DoublePrecision, HalfPrecision, Precision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

from zoo.errors import UserError
from zoo.private_apis.lightning_precision import cast_weights
from zoo.private_apis.lightning_trainer import set_precision

TRUE_DTYPES = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}


class TruePrecision(Precision):
    """Weights in one dtype, and with them the network's arithmetic.

    Args:
        precision: Lightning's name, one of `TRUE_DTYPES`.
    """

    def __init__(self, precision: Any) -> None:
        self.precision = precision

    def convert_module(self, module: nn.Module) -> nn.Module:
        cast_weights(module, TRUE_DTYPES[self.precision])
        return module


def use_precision(trainer: Any, module: Any, stage: str) -> None:
    """Prepare a Trainer and a module for the Trainer's precision, before the strategy is set up.

    Args:
        trainer: its plugins for true precisions are replaced by `TruePrecision`.
        module: whose weights are cast here already, so that a checkpoint is loaded without rounding. Its attribute
            `allow_tf32` says whether fp32 matrix products on CUDA may use TF32.
        stage: "fit", "validate", "test" or "predict".

    Raises:
        UserError: the precision does not work on the device, or for this stage.
    """
    device = trainer.strategy.root_device.type
    plugin = trainer.precision_plugin
    _refuse(str(plugin.precision), device, stage, is_sharded=isinstance(trainer.strategy, ModelParallelStrategy))
    if type(plugin) in (HalfPrecision, DoublePrecision):  # a user's own plugin stays
        plugin = TruePrecision(plugin.precision)
        set_precision(trainer, plugin)
    if isinstance(plugin, TruePrecision):
        plugin.convert_module(module)
    if device == "cuda":
        torch.set_float32_matmul_precision("high" if module.allow_tf32 else "highest")


def _refuse(precision: str, device: str, stage: str, is_sharded: bool) -> None:
    """Raises UserError for a precision in which nothing can be computed or trained."""
    if precision == "16-true" and stage == "fit":
        raise UserError(
            "--trainer.precision 16-true cannot train: without fp32 weights and a gradient scaler, small gradients and "
            f"their squares become 0; set it to {'bf16-mixed' if is_sharded else 'bf16-true, 16-mixed or bf16-mixed'}"
        )
    if precision == "64-true" and device == "mps":
        raise UserError("--trainer.precision 64-true: MPS does not support fp64; add --trainer.accelerator cpu")


def ignore_skipped_first_step() -> None:
    """Silence torch's warning about the order of optimizer and schedule where fp16's scaler skips the first step."""
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
