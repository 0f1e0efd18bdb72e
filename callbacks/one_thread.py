"""One CPU thread for models whose training step is too small for several."""

import os
import sys
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

SMALL_STEP = 2e9  # floating-point operations; measured in docs/scaling.md, "Busy machines"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
DEFAULT = torch.get_num_threads()  # at the import, before anything has set another number


class OneThread(Callback):
    """Train on a CPU with one thread where a step is small, which is as fast as several, and faster on a busy machine.

    The floating-point operations of the first batch decide. The decision is stored in the checkpoint, so that a resumed
    run computes with as many threads as before. Nothing changes where the user has set a number of threads: by an
    environment variable of `THREAD_VARIABLES`, or by `torch.set_num_threads` after the import of this module.
    """

    def __init__(self) -> None:
        self.is_small: bool | None = None  # None: not decided
        self.is_resumed = False  # from a checkpoint that stores the decision
        self.has_changed = False  # torch's number of threads, until the end of the run

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.is_small and _may_change(trainer):
            self._use_one_thread(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        model: Any = pl_module
        if self.is_small is not None:
            return
        # The run of an older checkpoint continues with the threads with which it began.
        may_change = _may_change(trainer) and (self.is_resumed or not trainer.ckpt_path)
        self.is_small = (
            may_change
            and hasattr(model, "flops_per_item")
            and model.count(batch) * model.flops_per_item(batch) < SMALL_STEP
        )
        if self.is_small:
            self._use_one_thread(trainer)

    def _use_one_thread(self, trainer: Trainer) -> None:
        torch.set_num_threads(1)
        self.has_changed = True
        if trainer.is_global_zero:
            message = (
                "one thread, because a step is small; the environment variable OMP_NUM_THREADS sets another number"
            )
            print(f"zoo: {message}", file=sys.stderr)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.has_changed:
            torch.set_num_threads(DEFAULT)
            self.has_changed = False

    def state_dict(self) -> dict[str, Any]:
        return {"is_small": self.is_small}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.is_small, self.is_resumed = state_dict["is_small"], True


def _may_change(trainer: Trainer) -> bool:
    """Whether the run computes on a CPU with torch's default of several threads."""
    is_default = torch.get_num_threads() == DEFAULT > 1 and not any(name in os.environ for name in THREAD_VARIABLES)
    return is_default and trainer.strategy.root_device.type == "cpu"
