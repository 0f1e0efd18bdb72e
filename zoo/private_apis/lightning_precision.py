"""Weights in another dtype, and the 16-bit format of a device. Written for lightning 2.6 and torch 2.13.

Private members used: `Module._apply`, the method under `Module.to`, called for one module without its children;
`_DeviceDtypeModuleMixin._dtype`, which `LightningModule.dtype` returns.
tests/private_apis/test_lightning_precision.py fails when one of them changes.
"""

from typing import Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

__all__ = ["cast_weights", "mixed_precision_of"]


def cast_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Cast floating-point parameters and buffers in place.

    Metrics, and modules with an attribute `keeps_dtype` that is true, stay as they are with all their children; so do
    buffers of `zoo.private_apis.torch_api.FixedBuffers`.

    Args:
        module: with all its children.
        dtype: dtype of the result.
    """
    if isinstance(module, Metric) or getattr(module, "keeps_dtype", False):
        return
    for child in module.children():
        cast_weights(child, dtype)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    module._apply(cast, recurse=False)
    if isinstance(module, LightningModule):
        module._dtype = dtype


def mixed_precision_of(device: torch.device | str) -> Literal["16-mixed", "bf16-mixed"]:
    """Lightning's name of the 16-bit mixed precision for a device: bf16 on CUDA GPUs from Ampere on and elsewhere.

    Older CUDA GPUs cannot compute in bf16, and get fp16.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "16-mixed"
    return "bf16-mixed"
