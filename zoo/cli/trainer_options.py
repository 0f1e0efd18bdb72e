"""Combinations of the Trainer's options that Lightning would refuse: `barebones`, and runs without checkpoints."""

import warnings
from typing import Any

from lightning.pytorch.callbacks import Callback

from zoo.callbacks import Checkpoint, EarlyStopping, Samples
from zoo.errors import UserError

OFF_IN_BAREBONES = (  # options that `barebones` turns off, also where a config sets them
    "enable_checkpointing", "logger", "enable_progress_bar", "log_every_n_steps", "enable_model_summary",
    "num_sanity_val_steps",
)  # fmt: skip
NOT_IN_BAREBONES = ("fast_dev_run", "detect_anomaly", "profiler")


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
