"""Atomic `best.ckpt` and `last.ckpt`: a run may be interrupted at any moment, also while it saves."""

import math
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from zoo.errors import UserError
from zoo.private_apis.lightning_trainer import SIGTERMException


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a temporary file next to the target, fsync, rename: the target is the old checkpoint or the new one.

    Args:
        deferred: store a failure in `failure` rather than raise it: the rank that writes must first reach the barrier
            at which the others wait.
    """

    def __init__(self, deferred: bool = False) -> None:
        self.deferred = deferred
        self.failure: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        # A crash while writing leaves the old checkpoint: the new one replaces it only when it is on the disk.
        path = Path(path)
        partial = path.with_name(path.name + ".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Flush and fsync before the rename: otherwise the new name could refer to data that is not on the disk.
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            # Remove the incomplete file, and say whether an earlier checkpoint exists.
            partial.unlink(missing_ok=True)
            remains = "the one before it is untouched" if path.exists() else "nothing was written"
            self.failure = OSError(
                f"cannot save the checkpoint {path} ({reason(error)}); {remains}: free disk space or give another "
                "--output_dir"
            )
            if self.deferred:
                return
            raise self.failure from error
        if hasattr(os, "O_DIRECTORY"):  # the rename itself must reach the disk; not possible on Windows
            folder = os.open(path.parent, os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict:
        return super().load_checkpoint(path, map_location=map_location, weights_only=True)


def reason(error: BaseException) -> str:
    """The operating system's description of a failed write, from inside torch's exceptions."""
    # Follow the chain of causes to the first OSError with a description.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0]


class Checkpoint(LightningCheckpoint):
    """Save the best and the last state of a run as `best.ckpt` and `last.ckpt`.

    `last.ckpt` is written after every validation, every `every_n_steps` steps, when training ends, and on Ctrl-C
    (SIGINT) and SIGTERM. A signal is recorded, and all ranks exchange it after an optimizer step: they save and stop
    together, so that none waits for another. A second Ctrl-C stops immediately, without saving. Weights that are not
    finite are never saved: training then stops with an error.

    Args:
        dirpath: folder of the checkpoints. Default: the run's folder (the Trainer's `default_root_dir`).
        monitor: name of the logged metric that decides which state is best.
        mode: "min" where a lower metric is better, "max" where a higher one is.
        every_n_steps: also save last.ckpt every this many optimizer steps, at least 1. Default: after validations and
            at the end only.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        monitor: str = "val_loss",
        mode: str = "min",
        every_n_steps: int | None = None,
    ) -> None:
        if mode not in ("min", "max"):
            raise UserError(f'--checkpoint.mode is "min" or "max", not {mode!r}')
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"--checkpoint.every_n_steps must be at least 1, not {every_n_steps}")
        self.dirpath = dirpath
        self.monitor = monitor
        self.mode = mode
        self.every_n_steps = every_n_steps
        self.best_score: float | None = None
        self.best_model_path = ""  # the name under which Trainer.test(ckpt_path="best") looks
        self.last_model_path = ""  # the newest checkpoint that this process has written
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._step = self._saved_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # The strategy writes checkpoints; give it the atomic writer.
        self.dirpath = self.dirpath or trainer.default_root_dir
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # a user's own plugin stays
            trainer.strategy.checkpoint_io = AtomicCheckpointIO(deferred=True)

    def state_dict(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor,
            "mode": self.mode,
            "best_score": self.best_score,
            "best_model_path": self.best_model_path,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        same = state_dict["monitor"] == self.monitor and state_dict.get("mode", self.mode) == self.mode
        if same:  # another metric starts a new record
            self.best_score = state_dict["best_score"]
            self.best_model_path = state_dict["best_model_path"]

    # ---- when to save

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or _saves_nothing(trainer):
            return
        # The best state first, so that last.ckpt records it too.
        if self._improved(trainer):
            self.best_model_path = self._save(trainer, "best.ckpt")
        self._save(trainer, "last.ckpt")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Between two optimizer steps accumulated gradients would be lost: wait for the next step.
        if trainer.global_step == self._step or _saves_nothing(trainer):
            return
        # A signal at any rank stops all ranks after the same step.
        stop = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        if stop or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            self._save(trainer, "last.ckpt")
        if stop:
            raise SIGTERMException if self._signal == signal.SIGTERM else KeyboardInterrupt

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _saves_nothing(trainer) and self._saved_step != trainer.global_step:
            self._save(trainer, "last.ckpt")

    def _save(self, trainer: Trainer, name: str) -> str:
        path = str(Path(self.dirpath or ".") / name)
        if self._saved_step != trainer.global_step:  # otherwise best.ckpt of this step was checked a moment ago
            self.refuse_non_finite(trainer, name)
        self._saved_step = trainer.global_step
        trainer.save_checkpoint(path, weights_only=False)
        # If the writing rank failed, all ranks raise, so that none waits for it.
        failure = getattr(trainer.strategy.checkpoint_io, "failure", None)
        if trainer.strategy.reduce_boolean_decision(failure is not None, all=False):
            raise failure or OSError(f"another process could not save the checkpoint {path}")
        self.last_model_path = path
        return path

    def refuse_non_finite(self, trainer: Trainer, name: str) -> None:
        """Raises UserError where a weight is not finite. Data-parallel ranks hold the same weights and decide alike."""
        if not all(bool(p.isfinite().all()) for p in trainer.lightning_module.parameters()):
            kept = f"; the last good checkpoint is {self.last_model_path}" if self.last_model_path else ""
            raise UserError(
                f"training has diverged: weights are not finite at step {trainer.global_step}, so {name} was not "
                f"written. Lower --model.lr, or set --trainer.gradient_clip_val{kept}"
            )

    def _improved(self, trainer: Trainer) -> bool:
        require_logged(trainer, "--checkpoint.monitor", self.monitor)
        # The first finite score is the best so far; later ones must be better than it.
        score = trainer.callback_metrics[self.monitor].item()
        better = math.isfinite(score) and (
            self.best_score is None or (score < self.best_score if self.mode == "min" else score > self.best_score)
        )
        if better:
            self.best_score = score
        return better

    # ---- signals

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._handlers[signum] = signal.signal(signum, self._record_signal)

    def _record_signal(self, signum: int, frame: Any) -> None:
        # A second Ctrl-C raises KeyboardInterrupt at once.
        self._signal = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nStopping after this step, with last.ckpt saved; Ctrl-C again stops immediately.", file=sys.stderr)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers.clear()


def require_logged(trainer: Trainer, setting: str, metric: str) -> None:
    """Raises UserError where the model does not log `metric`, the value of the option `setting`."""
    if metric not in trainer.callback_metrics:
        logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
        raise UserError(f"{setting} {metric!r} is not logged by this model, which logs {logged}")


def _saves_nothing(trainer: Any) -> bool:
    """Whether this is a `fast_dev_run`, of which no checkpoint is saved."""
    return bool(trainer.fast_dev_run)
