"""Peak FLOP/s of GPUs, by which utilisation (MFU) is measured."""

import math
import re
import warnings
from typing import NamedTuple

import torch
from lightning.fabric.utilities.throughput import get_available_flops


class Peak(NamedTuple):
    """Dense FLOP/s of a card with fp32 accumulation; NaN where its tensor cores do not support the type."""

    fp16: float
    bf16: float
    tf32: float


# Patterns of names as torch.cuda.get_device_name() gives them; the first that matches counts. The numbers are those of
# NVIDIA's data sheets (H100, H200, HGX B200, A100, L4, L40S, T4, V100) and, for GeForce cards, of the whitepapers
# "NVIDIA Ampere GA102" and "NVIDIA Ada GPU Architecture", appendix A; numbers with sparsity are halved.
PEAKS = {
    r"\bB200\b": Peak(2250e12, 2250e12, 1100e12),
    r"\bH[12]00 NVL\b": Peak(835.5e12, 835.5e12, 417.5e12),
    r"\bH100 PCIe\b": Peak(756e12, 756e12, 378e12),
    r"\bG?H[12]00\b": Peak(989.4e12, 989.4e12, 494.7e12),  # SXM, and Grace Hopper
    r"\bA100\b": Peak(312e12, 312e12, 156e12),
    r"\bL40S\b": Peak(362e12, 362e12, 183e12),
    r"\bL4\b": Peak(121e12, 121e12, 60e12),
    r"\bT4\b": Peak(65e12, math.nan, math.nan),
    r"\bV100-PCIE\b": Peak(112e12, math.nan, math.nan),
    r"\bV100\b": Peak(125e12, math.nan, math.nan),  # SXM2
    r"\bRTX 3090\b(?! Ti)": Peak(71e12, 71e12, 35.6e12),
    r"\bRTX 4090\b(?! D)": Peak(165.2e12, 165.2e12, 82.6e12),
}


def peak_flops(name: str, dtype: torch.dtype) -> float:
    """Dense FLOP/s of a card with tensor cores; NaN where it is not known.

    Args:
        name: name of the card, from `torch.cuda.get_device_name()`.
        dtype: torch.float16, torch.bfloat16, or torch.float32 for TF32.
    """
    field = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "tf32"}[dtype]
    return next((getattr(peak, field) for pattern, peak in PEAKS.items() if re.search(pattern, name)), math.nan)


def device_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of a device: of `PEAKS`, otherwise of Lightning's table; None where neither has it.

    Args:
        device: the device.
        dtype: dtype of matrix products; torch.float32 counts as TF32 if torch may use it.
    """
    uses_tensor_cores = dtype != torch.float32 or torch.get_float32_matmul_precision() != "highest"
    if device.type == "cuda" and uses_tensor_cores:
        peak = peak_flops(torch.cuda.get_device_name(device), dtype)
        if not math.isnan(peak):
            return peak
    with warnings.catch_warnings():  # Lightning warns of a card that it does not know
        warnings.simplefilter("ignore")
        return get_available_flops(device, dtype)
