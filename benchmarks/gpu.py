"""Shared by the GPU parts of the benchmarks: peak FLOP/s of a card, training steps, batches that fit into memory."""

import gc
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch

T = TypeVar("T")


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
        name: of the card, from `torch.cuda.get_device_name()`.
        dtype: torch.float16, torch.bfloat16, or torch.float32 for TF32.
    """
    field = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "tf32"}[dtype]
    return next((getattr(peak, field) for pattern, peak in PEAKS.items() if re.search(pattern, name)), math.nan)


def with_smaller_batches(run: Callable[[int], T], batch: int) -> tuple[T, dict[str, int]]:
    """`run(batch)`, with half the batch as often as the GPU's memory is too small.

    Returns:
        The result, and fields for its row: "batch", the size that fitted, and "halved_from", the given size, if it
        differs.

    Raises:
        torch.cuda.OutOfMemoryError: a batch of 1 does not fit either.
    """
    size = batch
    while True:
        try:
            return run(size), {"batch": size} | ({"halved_from": batch} if size < batch else {})
        except torch.cuda.OutOfMemoryError:
            if size == 1:
                raise
        # After the except block, whose exception keeps the tensors alive.
        gc.collect()
        torch.cuda.empty_cache()
        size //= 2
        print(f"out of GPU memory: trying a batch of {size} instead of {batch}")


def training_step(
    loss: Callable[[], torch.Tensor], optimizer: Any, dtype: torch.dtype, device: str = "cuda"
) -> Callable[[], None]:
    """A step in half precision, to be called repeatedly: forward, backward and optimizer, with loss scaling in fp16.

    Args:
        loss: of the next batch.
        optimizer: a `torch.optim.Optimizer`.
        dtype: torch.float16 or torch.bfloat16, of autocast.
        device: type of the device.
    """
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    def step() -> None:
        with torch.autocast(device, dtype=dtype):
            value = loss()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step
