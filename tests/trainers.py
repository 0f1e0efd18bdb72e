"""Trainer without output, for tests that train a few steps or evaluate."""

from typing import Any

from lightning import Trainer

OFF = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")


def quiet_trainer(**options: Any) -> Trainer:
    """A Trainer on the CPU that prints and saves nothing. Without `max_steps` or `max_epochs` it does not stop."""
    defaults = {"accelerator": "cpu", "num_sanity_val_steps": 0, "max_epochs": -1, **dict.fromkeys(OFF, False)}
    return Trainer(**{**defaults, **options})
