"""Atomic `best.ckpt` and `last.ckpt`: a run may be interrupted at any moment, also while it saves."""

import contextlib
import math
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from zoo.callbacks.checkpoint_io import AtomicCheckpointIO
from zoo.callbacks.signal_exchange import SignalExchange
from zoo.callbacks.signal_record import SignalRecord
from zoo.console.signals import signal_name
from zoo.console.slurm import requeue_job
from zoo.errors import Diverged, UserError, check_choice, check_counts
from zoo.files.folder_identity import FolderIdentity
from zoo.private_apis.lightning_api import counters_before_validation, validation_progress
from zoo.private_apis.lightning_launchers import end_other_ranks, only_starts_ranks
from zoo.private_apis.lightning_trainer import requeues
from zoo.sharding.tensors import are_finite


class Checkpoint(LightningCheckpoint):
    """Save the best and the last state of a run as `best.ckpt` and `last.ckpt`.

    `last.ckpt` is written after every validation, every `every_n_steps` steps, when training ends, and after a signal:
    Ctrl-C (SIGINT), SIGTERM and SIGHUP save and stop, SIGUSR1 saves and continues; in a SLURM job it also requeues the
    job, once. Weights that are not finite are never saved: training then stops with an error.

    A signal is recorded, and all ranks exchange it after an optimizer step and before a validation batch: they save and
    stop together, so that none waits for another. On several GPUs the exchange takes effect one step later, so that no
    step waits for it. One process alone interrupts a validation immediately. A checkpoint saved during a validation
    holds the state before it. A second Ctrl-C stops without waiting for the end of the step and without saving; a save
    that has begun is always completed.

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
        check_choice("--checkpoint.mode", mode, ("min", "max"))
        if every_n_steps is not None:
            check_counts(**{"--checkpoint.every_n_steps": every_n_steps})
        self.dirpath = dirpath
        self.monitor = monitor
        self.mode = mode
        self.every_n_steps = every_n_steps
        self.best_score: float | None = None
        self.best_model_path = ""  # the name under which Trainer.test(ckpt_path="best") looks
        self.last_model_path = ""  # the newest checkpoint that this process has written
        self._signals = SignalRecord()
        self._exchange = SignalExchange()
        self._step = self._saved_step = -1
        self._pretraining_step: int | None = None  # of a pretraining, where it was saved last
        self._folder: FolderIdentity | None = None  # as identified at the start of training, or at the first save
        self._validation_counters: dict[str, Any] | None = None  # before the validation
        self._is_requeued = False
        self._common_batches = 0.0  # number of validation batches that every rank has

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
        with self._signals.held():
            # The best state first, so that last.ckpt records it too.
            if self._improved(trainer):
                self.best_model_path = self._save(trainer, "best.ckpt")
            self._save(trainer, "last.ckpt")
        # In the middle of an accumulation window the stop waits for its end.
        stop, _ = self._agreed_signals(trainer)
        if stop and trainer.global_step != self._step:
            raise self._signals.exception()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step, self._pretraining_step = trainer.global_step, None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._validation_counters = validation_progress(trainer)
        # Between two optimizer steps accumulated gradients would be lost: wait for the next step.
        if trainer.global_step == self._step or _saves_nothing(trainer):
            return
        # A signal at any rank is a signal for all ranks.
        stop, save = self._agreed_signals(trainer)
        if stop or save or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            self._save(trainer, "last.ckpt")
        if save:
            self._requeue(trainer)
        if stop:
            raise self._signals.exception()

    def on_pretraining_step_end(self, trainer: Trainer, pl_module: LightningModule, step: int, is_last: bool) -> None:
        """Save and stop as after a step of training. A model that pretrains before its first step calls this.

        Args:
            trainer: the Trainer.
            pl_module: the model, whose checkpoint hooks store the pretraining's state.
            step: number of steps of the pretraining that are done.
            is_last: whether the pretraining is complete, which is saved.
        """
        if _saves_nothing(trainer):
            return
        stop, save = self._agreed_signals(trainer)
        if stop or save or is_last or (self.every_n_steps and step % self.every_n_steps == 0):
            self._save(trainer, "last.ckpt")
            self._pretraining_step = step
        if stop:
            raise self._signals.exception()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _saves_nothing(trainer) and self._saved_step != trainer.global_step:
            self._save(trainer, "last.ckpt")
        self._signals.restore()
        self._close_folder()

    def _save(self, trainer: Trainer, name: str) -> str:
        path = str(Path(self.dirpath or ".") / name)
        if self._saved_step != trainer.global_step:  # otherwise best.ckpt of this step was checked a moment ago
            self.refuse_non_finite(trainer, name)
        state = self._folder.state() if self._folder else "same"
        if state == "replaced":  # the new folder may belong to another run: write next to it
            folder = Path(path).absolute().parent
            path = str(folder.with_name(f"{folder.name}-{os.getpid()}") / name)
        # A signal that comes now is obeyed when the checkpoint is complete.
        with self._signals.held():
            trainer.save_checkpoint(path, weights_only=False)
        # If the writing rank failed, all ranks raise, so that none waits for it.
        failure = getattr(trainer.strategy.checkpoint_io, "failure", None)
        if self._is_agreed(trainer, failure is not None):
            raise failure or OSError(f"another process could not save the checkpoint {path}")
        self.last_model_path, self._saved_step = path, trainer.global_step
        if self._is_agreed(trainer, state != "same"):
            where = "a new folder of that name" if state == "removed" else str(Path(path).parent)
            raise OSError(
                f"{self.dirpath or '.'} was {state} during training: {name} of step {trainer.global_step} was written "
                f"to {where}, and the run was stopped"
            )
        self._open_folder(trainer)
        return path

    def _open_folder(self, trainer: Trainer) -> None:
        """Remember the folder, if it exists: it may be removed or replaced during training. Rank 0 alone writes."""
        folder = Path(self.dirpath or ".")
        if self._folder is None and trainer.is_global_zero and folder.is_dir():
            self._folder = FolderIdentity(folder)

    def _close_folder(self) -> None:
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def refuse_non_finite(self, trainer: Trainer, name: str) -> None:
        """Raises UserError if a weight is not finite. All ranks decide alike."""
        if not all(are_finite(list(trainer.lightning_module.parameters()))):
            kept = f"; the last good checkpoint is {self.last_model_path}" if self.last_model_path else ""
            raise Diverged(
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
        self._open_folder(trainer)
        self._exchange = SignalExchange()
        if not _saves_nothing(trainer):
            self._signals.install(is_quiet=not trainer.is_global_zero)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking or _saves_nothing(trainer):
            return
        batches = torch.tensor(float(sum(trainer.num_val_batches)), dtype=torch.float32, device=pl_module.device)
        self._common_batches = float(trainer.strategy.reduce(batches, reduce_op="min"))
        # A single process need not wait for the end of the batch.
        self._signals.raises_at_once = trainer.world_size == 1

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # All ranks take part in the exchange: only at batches that each of them has.
        if trainer.state.fn != "fit" or trainer.sanity_checking or _saves_nothing(trainer) or dataloader_idx:
            return
        if batch_idx < self._common_batches:
            stop, save = self._agreed_signals(trainer)
            if stop or save:
                self._save_before_validation(trainer)
            if save:
                self._requeue(trainer)
            if stop:
                raise self._signals.exception()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # From here callbacks change their records: a stop waits until last.ckpt is saved with them.
        self._signals.raises_at_once = False

    def _agreed_signals(self, trainer: Trainer) -> tuple[bool, bool]:
        """Whether any rank received a signal to stop, and whether any received one to save."""
        # A signal that comes during the exchange counts in the next one.
        stop, save = self._signals.stop or 0, int(self._signals.save)
        self._signals.save = False
        if trainer.world_size > 1:
            stop, save = self._exchange.largest(trainer, (stop, save))
        if stop:
            self._signals.stop = self._signals.stop or stop
        return bool(stop), bool(save)

    def _requeue(self, trainer: Trainer) -> None:
        """In a SLURM job: requeue it, once. SLURM then ends it with SIGTERM, and starts it again later."""
        if requeues(trainer) and not self._is_requeued:
            self._is_requeued = True
            if trainer.is_global_zero:
                print(f"zoo: {requeue_job()}", file=sys.stderr)

    def _is_agreed(self, trainer: Trainer, decision: bool) -> bool:
        """Whether `decision` is true at any rank."""
        return trainer.strategy.reduce_boolean_decision(decision, all=False)

    def _save_before_validation(self, trainer: Trainer) -> None:
        with counters_before_validation(trainer, self._validation_counters):
            self._save(trainer, "last.ckpt")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.state.fn == "fit" and isinstance(exception, KeyboardInterrupt | SystemExit):
            failure = None
            # Interrupted by the handler of a signal inside a validation, before a batch's end.
            if self._signals.was_raised:
                try:
                    self._save_before_validation(trainer)
                except (OSError, UserError) as error:
                    failure = error
            if trainer.is_global_zero and not only_starts_ranks(trainer):
                with contextlib.suppress(OSError):  # the terminal may be gone
                    print(f"zoo: {self._describe_stop(trainer, failure)}", file=sys.stderr)
        self._signals.restore()
        self._close_folder()
        end_other_ranks(trainer)

    def _describe_stop(self, trainer: Trainer, failure: Exception | None) -> str:
        """One sentence: why and where training stopped, what is saved, how to continue."""
        reason = f"stopped by {signal_name(self._signals.stop)}" if self._signals.stop else "stopped"
        step = trainer.global_step
        if self._pretraining_step is not None:
            return (
                f"{reason} in the pretraining, of which step {self._pretraining_step} is saved; {self.how_to_resume()}"
            )
        if failure is not None:
            return f"{reason} at step {step}; {failure}"
        if self._saved_step == step:
            return f"{reason} after step {step}, which is saved; {self.how_to_resume()}"
        if self._saved_step >= 0:
            return f"{reason} at step {step}; saved is step {self._saved_step}; {self.how_to_resume()}"
        if trainer.ckpt_path:
            return f"{reason} at step {step}; nothing was saved since the run was resumed; {self.how_to_resume()}"
        return f"{reason} at step {step}; nothing is saved"

    def how_to_resume(self) -> str:
        """The end of the sentence after a signal."""
        path = Path(self.dirpath or ".") / "last.ckpt"
        if path.with_name("config.yaml").is_file():  # of the command line, which then needs no further option
            return f"to continue: zoo fit --ckpt_path {shlex.quote(str(path))}"
        return f"to continue, add --ckpt_path {path}"


def require_logged(trainer: Trainer, setting: str, metric: str) -> None:
    """Raises UserError if the model does not log `metric`, the value of the option `setting`."""
    if metric not in trainer.callback_metrics:
        logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
        raise UserError(f"{setting} {metric!r} is not logged by this model, which logs {logged}")


def _saves_nothing(trainer: Any) -> bool:
    """Whether this is a `fast_dev_run`, of which no checkpoint is saved."""
    return bool(trainer.fast_dev_run)
