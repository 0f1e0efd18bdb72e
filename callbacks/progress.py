"""One progress line for a run: step of all steps, speed, time left, training and validation loss."""

import math
import time
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer
from torch import Tensor

from zoo.callbacks.budget import Budget
from zoo.console import progress_text
from zoo.console.progress_display import Display, open_display
from zoo.console.progress_text import Clock
from zoo.private_apis.lightning_api import batches_done_in_epoch

VERBS = {"validate": "validation", "test": "test", "predict": "prediction"}


class Progress(ProgressBar):
    """The progress of training, evaluation or prediction: one line that is redrawn in a terminal or notebook.

    In a pipe or file, lines are printed every 10 seconds, after each validation and at the end. The line has the number
    of optimizer steps of all steps of the run, or of batches of all batches; the speed; the time left, which includes
    validations at their frequency so far and respects the limits of time `max_time` and `--budget`; the last training
    loss, the last validation loss, the monitored metric, and other metrics that are logged with `prog_bar=True`. The
    process of rank 0 alone shows it.

    Args:
        label: name of the run among several, such as "trial 2 of 20"; the line starts with it.
    """

    def __init__(self, label: str = "") -> None:
        super().__init__()
        self.label = label
        self._enabled = True
        self._display: Display | None = None  # while a run is shown
        self._clock = Clock(time.monotonic)
        self._since = 0.0  # start of the run
        self._total: int | None = None  # batches of an evaluation, or steps of a pretraining
        self._unit, self._batches_done = "step", 0
        self._is_validating = False  # within training
        self._has_ended = False  # the training
        self._evaluated: dict[str, float] = {}  # metrics of the last validation

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_display": None}  # processes that are spawned have their own

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    # ---- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluated = {}
        self._open("step", trainer.global_step)
        self._show(trainer)

    def on_pretraining_step_end(self, trainer: Trainer, pl_module: LightningModule, step: int, is_last: bool) -> None:
        """Show a pretraining before the first step of training.

        Args:
            trainer: the Trainer.
            pl_module: the model, with its number of steps as the setting `pretrain_steps`.
            step: number of steps of the pretraining that are done.
            is_last: whether the pretraining is complete.
        """
        if self._unit == "step":
            self._clock.restart(step - 1)
        self._unit, self._total = "pretraining step", int(pl_module.hparams["pretrain_steps"])
        self._clock.update(step)
        self._show(trainer)
        if is_last:
            self._unit = "step"
            self._clock.restart(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._clock.update(trainer.global_step)
        self._show(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._has_ended = True
        self._close(trainer)

    # ---- validation, within training or alone

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._clock.pause()
            self._is_validating, self._batches_done = True, 0
        else:
            self._open_evaluation(trainer.num_val_batches)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count_batch(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._close(trainer)
            return
        self._clock.resume()
        self._is_validating = False
        if not trainer.sanity_checking and self._display is not None:
            self._evaluated = _evaluated(trainer)
            self._display.show(self._state(trainer), is_event=True)

    # ---- test and prediction

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open_evaluation(trainer.num_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open_evaluation(trainer.num_predict_batches)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer)

    on_predict_end = on_test_end

    # ---- the end of a run that failed or was stopped

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._close()

    # ---- the line

    def line_label(self, share: float | None) -> str:
        """The label of the next line; override it for one that changes.

        Args:
            share: share of the run that is done, from 0 to 1; None if its end is not known.
        """
        return self.label

    def _open(self, unit: str, done: int, total: int | None = None) -> None:
        self._close()
        self._unit, self._total, self._since = unit, total, time.monotonic()
        self._clock.restart(done)
        self._is_validating = self._has_ended = False
        if self._enabled:
            self._display = open_display()

    def _open_evaluation(self, batches: Sequence[int | float] | int | float) -> None:
        total = sum(batches) if isinstance(batches, Sequence) else batches
        self._open("batch", 0, int(total) if math.isfinite(total) else None)
        self._batches_done = 0

    def _count_batch(self, trainer: Trainer) -> None:
        self._batches_done += 1
        if trainer.state.fn != "fit":
            self._clock.update(self._batches_done)
        self._show(trainer)

    def _show(self, trainer: Trainer) -> None:
        if self._display is not None and self._display.is_due():
            self._display.show(self._state(trainer))

    def _close(self, trainer: Trainer | None = None) -> None:
        """End the line: with the state of a trainer at the end of a run, without one as it is."""
        display, self._display = self._display, None
        if display is not None:
            display.close(None if trainer is None else self._state(trainer))

    def _state(self, trainer: Trainer) -> progress_text.Progress:
        """The values that the line shows now."""
        is_fit = trainer.state.fn == "fit"
        is_training = is_fit and self._unit == "step"
        total, share = _planned_steps(trainer) if is_training else self._total, None
        left = self._clock.left(total)
        if is_training and (limits := self._time_limits(trainer)):
            seconds = min(left for _, left in limits)
            share = max(spent / max(spent + left, 1e-9) for spent, left in limits)
            if self._has_ended:  # early stopping ends a run before its limits
                total = total if total is not None else total_steps(trainer)
                is_over = seconds <= 0 or (total is not None and self._clock.done >= total)
                left, share = (0.0, 1.0) if is_over else (None, share)
            elif (required := _required_steps(trainer)) > self._clock.done:
                # Lightning goes on after the limit of time, until these steps are done.
                rest = self._clock.left(required)
                left = None if rest is None else min(max(seconds, rest), math.inf if left is None else left)
                share = min(share, self._clock.done / required)
            else:
                left = seconds if left is None else min(seconds, left)
            if total:
                share = max(share, self._clock.done / total)
        activity = ""
        if not is_fit:
            verb: Any = trainer.state.fn
            activity = VERBS[verb.value]
        elif self._is_validating:
            batches = sum(trainer.num_val_batches)
            activity = f"validation, batch {self._batches_done:,}"
            activity += f" of {int(batches):,}" if math.isfinite(batches) else ""
        state = progress_text.Progress(
            self._clock.done, total, self._unit, "", activity, self._clock.rate(), left, share,
            self._values(trainer) if is_training else {},
        )  # fmt: skip
        state.label = self.line_label(state.done_share)
        return state

    def _time_limits(self, trainer: Trainer) -> list[tuple[float, float]]:
        """Seconds that are spent and that are left of each limit of time of a run."""
        limits = []
        if (budget := _find(trainer, Budget)) is not None:
            now = time.monotonic()
            limits.append((now - self._since, max(budget.end - now, 0.0)))
        if (timer := _find(trainer, Timer)) is not None and (left := timer.time_remaining()) is not None:
            limits.append((timer.time_elapsed(), max(left, 0.0)))  # the parts before the run was resumed included
        return limits

    def _values(self, trainer: Trainer) -> dict[str, float]:
        """Training loss, metrics of the last validation, then all else that is logged for the progress bar."""
        shown: dict[str, Any] = dict(self.get_metrics(trainer, trainer.lightning_module))
        first = {name: shown.pop(name) for name in ("train_loss",) if name in shown}
        values = {**first, **self._evaluated, **{n: v for n, v in shown.items() if n not in self._evaluated}}
        return {name: float(v) for name, v in values.items() if isinstance(v, int | float | Tensor) and name != "v_num"}


def total_steps(trainer: Any) -> int | None:
    """Optimizer steps of a whole run, as its limits of steps and epochs say; None if only a time limits it."""
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and math.isfinite(trainer.num_training_batches):
        limits.append(_steps_until(trainer, trainer.max_epochs))
    return min(limits, default=None)


def _steps_until(trainer: Any, epochs: int) -> int:
    """Steps that are done, those of the rest of this epoch, and those of the epochs after it up to a number of epochs.

    After that number of epochs it is the step at the end of the current epoch.
    """
    batches = int(trainer.num_training_batches)
    window, done = trainer.accumulate_grad_batches, batches_done_in_epoch(trainer)
    per_epoch = -(-batches // window)
    rest = per_epoch - done // window if done < batches else 0
    return trainer.global_step + rest + max(epochs - trainer.current_epoch - 1, 0) * per_epoch


def _planned_steps(trainer: Trainer) -> int | None:
    """Steps of a run: those that a budget has planned, if there is one."""
    budget = _find(trainer, Budget)
    return total_steps(trainer) if budget is None else budget.planned_steps


def _required_steps(trainer: Trainer) -> int:
    """Steps that a run takes even beyond its time limit: the larger of min_steps and min_epochs, at most all steps."""
    required = trainer.min_steps or 0
    epochs = trainer.min_epochs or 0
    if trainer.current_epoch < epochs and math.isfinite(trainer.num_training_batches):
        required = max(required, _steps_until(trainer, epochs))
    all_steps = total_steps(trainer)
    return required if all_steps is None else min(required, all_steps)


def _find(trainer: Any, kind: type) -> Any:
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)


def _evaluated(trainer: Any) -> dict[str, float]:
    """The validation loss and the metric that decides on the best checkpoint, from the validation that has ended."""
    monitor = getattr(trainer.checkpoint_callback, "monitor", None)
    names = dict.fromkeys(("val_loss", *([monitor] if monitor else [])))
    return {name: float(trainer.callback_metrics[name]) for name in names if name in trainer.callback_metrics}
