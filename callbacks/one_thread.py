"""Number of CPU threads of a training run: one for small steps, and after resuming as many as before."""

import os
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.console.argument_names import print_notice
from zoo.console.threads import available_cores, is_number_of_threads
from zoo.errors import check_counts

SMALL_STEP = 2e9  # floating-point operations; measured in docs/scaling.md, "Busy machines"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
REMEDY = "the environment variable OMP_NUM_THREADS sets another number"
DEFAULT = torch.get_num_threads()  # at the import, before anything has set another number


class OneThread(Callback):
    """Train on a CPU with one thread where a step is small, which is as fast as several, and faster on a busy machine.

    The floating-point operations of the first batch decide. The checkpoint stores the number of threads, and a resumed
    run computes with as many. Nothing changes where the user has set a number of threads: by a whole number in an
    environment variable of `THREAD_VARIABLES`, or by `torch.set_num_threads` after the import of this module. torch has
    its former number of threads again when the run ends, also by an exception.
    """

    def __init__(self) -> None:
        self.n_threads: int | None = None  # with which the run trains on a CPU; None: not decided
        self.is_resumed = False  # from a checkpoint that stores the number
        self.former: int | None = None  # torch's number of threads before this callback set another one

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":  # Lightning loads the state of a checkpoint afterwards
            self.n_threads, self.is_resumed = None, False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stored, current = self.n_threads, torch.get_num_threads()
        if stored is None or stored == current or not _is_on_cpu(trainer):
            return
        reason = ""
        if _is_set_by_user():
            reason = "because the number is set"
        elif stored > max(DEFAULT, available_cores()):
            reason = f"because {available_cores()} cores are available"
        if reason:
            self.n_threads = current
            print_notice(
                f"the checkpoint was trained with {_threads(stored)}, this run uses {current}, {reason}: results can "
                "differ in the last digits"
            )
        else:
            self._use(stored)
            print_notice(f"{_threads(stored)}, as before the run was resumed; {REMEDY}")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        model: Any = pl_module
        if self.n_threads is not None or not _is_on_cpu(trainer):
            return
        # The run of an older checkpoint continues with the threads with which it began.
        is_small = (
            not _is_set_by_user()
            and torch.get_num_threads() > 1
            and (self.is_resumed or not trainer.ckpt_path)
            and hasattr(model, "flops_per_item")
            and model.count(batch) * model.flops_per_item(batch) < SMALL_STEP
        )
        if is_small:
            self._use(1)
            print_notice(f"one thread, because a step is small; {REMEDY}")
        self.n_threads = torch.get_num_threads()

    def _use(self, n_threads: int) -> None:
        self.former = torch.get_num_threads()
        torch.set_num_threads(n_threads)

    def _restore(self) -> None:
        if self.former is not None:
            torch.set_num_threads(self.former)
            self.former = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()  # Lightning calls no teardown after an exception

    def state_dict(self) -> dict[str, Any]:
        return {"n_threads": self.n_threads}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Versions of November 2026 stored whether a step is small: False also where the number was set.
        is_older = "n_threads" not in state_dict
        n_threads = (1 if state_dict["is_small"] else None) if is_older else state_dict["n_threads"]
        if n_threads is not None:
            check_counts(n_threads=n_threads)
        self.n_threads = n_threads
        self.is_resumed = not is_older or state_dict["is_small"] is None


def _is_on_cpu(trainer: Trainer) -> bool:
    return trainer.strategy.root_device.type == "cpu"


def _is_set_by_user() -> bool:
    """Whether an environment variable or torch.set_num_threads has set the number of threads."""
    is_set = any(is_number_of_threads(os.environ.get(name, "")) for name in THREAD_VARIABLES)
    return is_set or torch.get_num_threads() != DEFAULT


def _threads(n: int) -> str:
    return "one thread" if n == 1 else f"{n} threads"
