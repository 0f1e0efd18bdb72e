"""The Trainer's options: what Lightning would report less clearly or refuse, as `barebones` and no checkpoints."""

import warnings
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from zoo.callbacks import Checkpoint, EarlyStopping, Samples
from zoo.errors import UserError

OFF_IN_BAREBONES = (  # options that `barebones` turns off, also where a config sets them
    "enable_checkpointing", "logger", "enable_progress_bar", "log_every_n_steps", "enable_model_summary",
    "num_sanity_val_steps",
)  # fmt: skip
NOT_IN_BAREBONES = ("fast_dev_run", "detect_anomaly", "profiler")


def check_trainer(trainer: Any) -> None:
    """Check the Trainer's options, and complete them in place where `barebones` is set.

    Raises:
        UserError: there is no GPU as requested, or an option is outside its range or excluded by another.
    """
    if trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"--trainer.accelerator {trainer.accelerator}: torch finds no CUDA GPU here; drop it, or set it to cpu"
        )
    if trainer.accumulate_grad_batches < 1:
        raise UserError(f"--trainer.accumulate_grad_batches must be at least 1, not {trainer.accumulate_grad_batches}")
    apply_barebones(trainer)


def apply_barebones(trainer: Any) -> None:
    """Where `trainer.barebones` is set, turn off in place what a config sets and barebones excludes.

    Warnings about what the user has turned off are not shown.

    Args:
        trainer: the Trainer's options.

    Raises:
        UserError: an option is set that barebones cannot override.
    """
    if not saves_checkpoints(trainer):
        warnings.filterwarnings("ignore", message="Be aware that when using .ckpt_path., callbacks used to create")
    if not trainer.barebones:
        return
    for name in NOT_IN_BAREBONES:
        if trainer[name]:
            raise UserError(f"--trainer.barebones true excludes --trainer.{name}: drop one of them")
    for name in OFF_IN_BAREBONES:
        trainer[name] = None
    warnings.filterwarnings("ignore", message=".*Trainer.barebones=True.. is configured")  # models log as always


def suits(callback: Callback, trainer: dict[str, Any]) -> bool:
    """Whether a callback that every run has is used with these options of the Trainer."""
    if isinstance(callback, Checkpoint):
        return saves_checkpoints(trainer)
    # In barebones mode no metric is logged that could stop a run.
    return not (trainer["barebones"] and isinstance(callback, EarlyStopping | Samples))


def saves_checkpoints(trainer: Any) -> bool:
    """Whether a run with these options of the Trainer saves checkpoints."""
    return not trainer["barebones"] and trainer["enable_checkpointing"] is not False
