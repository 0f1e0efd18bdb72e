"""Shared by the GPU parts of the benchmarks: training steps, and batches that fit into memory."""

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


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
        loss: loss of the next batch.
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
