"""Training throughput: items per second, and model FLOPs utilisation."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.callbacks.peak_flops import device_flops
from zoo.errors import check_counts

FP32: Any = {"dtype": torch.float32, "device": "cpu"}


class Throughput(Callback):
    """Log `<item>_per_second` and, where the device's peak is known, `mfu` (model FLOPs utilisation).

    Read from the module: `item`, the unit ("tokens", "samples"); `count(batch)`, the number of items in a batch;
    `flops_per_item(batch)`, the floating-point operations of one item, forward and backward. The time of validations,
    checkpoints and the first `every_n_steps` steps (compilation, warm-up) is not counted.

    Args:
        every_n_steps: number of optimizer steps that one value is averaged over, at least 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        check_counts(**{"--throughput.every_n_steps": every_n_steps})
        self.every_n_steps = every_n_steps
        self._restart()

    def _restart(self) -> None:
        self.items, self.flops, self.seconds = 0, 0.0, 0.0
        self._flops_per_item: dict[tuple[torch.Size, ...] | None, float] = {}  # by the shapes of a batch
        self.since: float | None = None
        self.first_step: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()
        self.warm = False
        dtype = {"16": torch.float16, "bf": torch.bfloat16}.get(str(trainer.precision)[:2], torch.float32)
        self.peak = device_flops(pl_module.device, dtype)  # of one device, None where it is not known

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # The clock runs from the first batch of a window, or of the part after a pause.
        if self.since is None:
            self.since = self._now(trainer)
        if self.first_step is None:
            self.first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        model: Any = pl_module
        if not hasattr(model, "count") or self.first_step is None:
            return
        # Every rank is taken to have as many items as this one.
        n_items = model.count(batch) * trainer.world_size
        self.items += n_items
        if self.peak:
            self.flops += n_items * self._count_flops(model, batch)  # batches differ in length
        if trainer.global_step - self.first_step < self.every_n_steps:
            return
        self._pause(trainer)
        # The first window is the warm-up, which is not reported.
        if self.warm and self.seconds > 0:
            speed = self.items / self.seconds
            # On the CPU: the progress bar reads the value after every step, and would wait for a GPU.
            model.log(f"{model.item}_per_second", torch.tensor(speed, **FP32), prog_bar=True, rank_zero_only=True)
            if self.peak:  # model FLOPs utilization: the share of the devices' peak speed
                mfu = self.flops / self.seconds / (self.peak * trainer.world_size)
                model.log("mfu", torch.tensor(mfu, **FP32), rank_zero_only=True)
        self.warm = True
        self._restart()

    def _count_flops(self, model: Any, batch: Any) -> float:
        """Operations per item, computed once in a window for each shape: going through all parameters takes time."""
        shapes = None
        if isinstance(batch, tuple | list):
            shapes = tuple(part.shape for part in batch if isinstance(part, torch.Tensor))
        if not shapes or shapes not in self._flops_per_item:
            self._flops_per_item[shapes] = model.flops_per_item(batch)
        return self._flops_per_item[shapes]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        self._pause(trainer)

    def _pause(self, trainer: Trainer) -> None:
        if self.since is not None:
            self.seconds += self._now(trainer) - self.since
            self.since = None

    @staticmethod
    def _now(trainer: Trainer) -> float:
        # Kernels run asynchronously: wait for them, once per window rather than per step.
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
