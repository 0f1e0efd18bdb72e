"""The lines that `zoo fit` prints at its end."""

import shlex
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer

from zoo.callbacks import Charts, Checkpoint
from zoo.cli.score_table import by_metric, described


class ClosingMessage(Callback):
    """Print when training has ended: the folder, the number of steps, the best score, baselines, and the next command.

    Where nothing was validated, the line says so: there is then no best.ckpt.

    A callback, so that the process that trains prints it: with ddp_spawn and ddp_fork the process that was started
    knows neither the steps nor the score.

    Args:
        resumed_step: optimizer step of the checkpoint from which the run was resumed, if any.
        names_next_command: print the command that scores the best checkpoint.
    """

    def __init__(self, resumed_step: int | None = None, names_next_command: bool = True) -> None:
        self.resumed_step = resumed_step
        self.names_next_command = names_next_command

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.is_global_zero or trainer.fast_dev_run:
            return
        step = trainer.global_step
        line = f"{trainer.default_root_dir}: {step} steps"
        checkpoint = trainer.checkpoint_callback
        if checkpoint is None:
            line += ", no checkpoint saved (checkpoints are off)"
        elif isinstance(checkpoint, Checkpoint) and checkpoint.best_model_path and checkpoint.best_score is not None:
            line += f", best {checkpoint.monitor} {checkpoint.best_score:.4g}" + _baselines(trainer, checkpoint.monitor)
        elif isinstance(checkpoint, Checkpoint) and checkpoint.monitor not in trainer.callback_metrics:
            line += f"; nothing was validated{_interval(trainer)}: there is no best.ckpt, only last.ckpt"
        if self.resumed_step == step:
            line += f"; nothing was left to do: raise {_limit(trainer)} to go on"
        print(line, file=sys.stderr)
        names = (getattr(checkpoint, name, "") for name in ("best_model_path", "last_model_path"))
        if self.names_next_command and (path := next((name for name in names if name and Path(name).exists()), None)):
            has_split = getattr(trainer.datamodule, "has_split", lambda split: True)
            verb = "test" if has_split("test") else "validate"
            print(f"next: zoo {verb} --ckpt_path {shlex.quote(path)}", file=sys.stderr)


def _baselines(trainer: Any, monitor: str) -> str:
    """The baselines of the monitored metric in parentheses; for one without, those of the last validation's others."""
    scores = next((c.scores for c in trainer.callbacks if isinstance(c, Charts)), None) or {}
    if of_monitor := by_metric([monitor], scores):
        return f" ({', '.join(described(of_monitor[monitor]))})"
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
    metrics = {name: value for name, value in metrics.items() if "/" not in name}  # of all targets together
    others = by_metric(metrics, scores)
    return "".join(f"; last {name} {metrics[name]:.4g} ({', '.join(described(others[name]))})" for name in others)


def _interval(trainer: Any) -> str:
    """The option that left no validation to a run, in parentheses."""
    interval, epochs = getattr(trainer, "val_check_interval", None), trainer.check_val_every_n_epoch
    if trainer.limit_val_batches == 0:
        return " (--trainer.limit_val_batches 0)"
    if epochs is None:
        return f" (--trainer.val_check_interval {interval})" if isinstance(interval, int) else ""
    return f" (--trainer.check_val_every_n_epoch {epochs})" if epochs > 1 else " (no epoch ended)"


def _limit(trainer: Any) -> str:
    """The option whose limit a run has reached that took no step."""
    seconds_left = [c.time_remaining() for c in trainer.callbacks if isinstance(c, Timer)]
    if any(seconds is not None and seconds <= 0 for seconds in seconds_left):
        return "--trainer.max_time"  # it counts the time before the run was resumed too
    is_at_last_step = 0 <= trainer.max_steps <= trainer.global_step
    has_max_epochs = trainer.max_epochs is not None and trainer.max_epochs >= 0
    return "--trainer.max_epochs" if has_max_epochs and not is_at_last_step else "--trainer.max_steps"
