"""Lightning's undocumented counters of batches: read, and corrected when a run is saved or resumed.

tests/private_apis/test_lightning_progress.py fails when a new version of Lightning changes them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback


def batch_index(trainer: Any) -> int:
    """Index of the current training batch, counted from 0 over all epochs and over all runs that were resumed."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def batches_done(trainer: Any) -> int:
    """Training batches finished since the first step, over all epochs."""
    return training_progress(trainer).total.processed


def batches_done_in_epoch(trainer: Any) -> int:
    """Training batches finished in the current epoch."""
    return training_progress(trainer).current.processed


def is_epoch_done(trainer: Any) -> bool:
    """Whether the last batch of the current epoch is finished."""
    progress = training_progress(trainer)
    return progress.is_last_batch and progress.current.processed == progress.current.ready


def is_batch_unfinished(trainer: Any) -> bool:
    """Whether a training batch was started and not finished, as after Ctrl-C."""
    total = training_progress(trainer).total
    return total.ready > total.processed


def take_back_batches(trainer: Any, count: int) -> None:
    """Count an unfinished batch and the last `count` finished batches as not started, so that they run again."""
    progress = training_progress(trainer)
    for counts in (progress.total, progress.current):
        counts.processed -= count
        counts.ready = counts.started = counts.completed = counts.processed
    progress.is_last_batch = False


def is_fitting(module: Any) -> bool:
    """Whether a Trainer trains the module at the moment."""
    return module._trainer is not None and module._trainer.state.fn == "fit"


def is_validating(module: Any) -> bool:
    """Whether a Trainer validates the module at the moment, within a fit too."""
    return module._trainer is not None and module._trainer.validating


def progress_state(trainer: Any) -> dict[str, Any]:
    """The arguments of `resume_counters`, for the state of a training loader.

    "unused" is the number of finished batches whose gradients wait for the rest of their accumulation window;
    "validation_due" whether the validation after the last finished batch is not over; "metrics" are, if it is due, the
    values logged so far, because callbacks may monitor a training metric after that validation; "validates_at_end" is,
    after the last batch of an epoch, whether a validation belongs there.
    """
    if trainer is None:
        return {"unused": 0, "validation_due": False}
    # The last batch of an epoch always takes an optimizer step.
    unused = 0 if is_epoch_done(trainer) else batches_done_in_epoch(trainer) % trainer.accumulate_grad_batches
    state = {"unused": unused, "validation_due": is_validation_due(trainer)}
    if state["validation_due"]:
        state["metrics"] = {name: value.item() for name, value in trainer.callback_metrics.items()}
    if is_epoch_done(trainer):
        state["validates_at_end"] = trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
    return state


def resume_counters(trainer: Any, state: Mapping[str, Any]) -> None:
    """Correct the counters that a resumed fit has restored: call this when the training loader's state is loaded.

    Batches of an open accumulation window and an interrupted batch run again; validations that are over do not. A
    validation that was due runs before the next batch.

    Args:
        trainer: the trainer.
        state: contains `progress_state` of the saved run.
    """
    is_due = state.get("validation_due", False)
    validates = trainer.fit_loop.epoch_loop._should_check_val_epoch()  # now; the saved run may have had other settings
    if not is_due:
        _set_totals(trainer.fit_loop.epoch_loop.val_loop.batch_progress.total, is_interrupted=False)
    if state["unused"] or is_batch_unfinished(trainer):
        trainer.callbacks.insert(0, _Resumed(validated_until=batches_done(trainer) - is_due))
        take_back_batches(trainer, state["unused"])
    elif is_due and validates:
        _run_validation_first(trainer, state.get("metrics", {}))
    elif not trainer.fit_loop.done:
        _correct_epoch(trainer, validates and state.get("validates_at_end", True))


def is_validation_due(trainer: Any) -> bool:
    """Whether a validation belongs after the last finished batch and is not over."""
    epoch_loop = trainer.fit_loop.epoch_loop
    total = training_progress(trainer).total
    if total.ready > total.processed or not total.processed or trainer._val_check_time_interval is not None:
        return False  # within a batch; nothing trained; or validated by the clock
    epochs = trainer.fit_loop.epoch_progress.total
    if epochs.processed == epochs.started:
        return False  # the epoch is over, or training is
    # A batch counts as completed when its hooks have run, which is before its validation.
    validated = epoch_loop.val_loop.batch_progress
    is_all_validated = validated.is_last_batch and validated.current.completed == validated.current.ready
    is_over = total.completed == total.processed and is_all_validated
    return not is_over and epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher)


def _run_validation_first(trainer: Any, metrics: Mapping[str, float]) -> None:
    """Make a resumed fit run the validation after the last finished batch before it trains.

    Lightning does so where its counters say that the batch is complete and the validation was stopped within a batch.
    """
    epoch_loop = trainer.fit_loop.epoch_loop
    for counts in (epoch_loop.batch_progress.total, epoch_loop.batch_progress.current):
        counts.completed = counts.processed
    validated = epoch_loop.val_loop.batch_progress
    validated.reset()  # all validation batches run
    _set_totals(validated.total, is_interrupted=True)
    is_at_end = 0 <= epoch_loop.max_steps <= trainer.global_step  # the fit would end before that validation
    max_steps = epoch_loop.max_steps if is_at_end else None
    trainer.callbacks.insert(0, _Resumed(max_steps=max_steps, is_validation_first=True, metrics=metrics))
    if is_at_end:
        epoch_loop.max_steps = trainer.global_step + 1


def _set_totals(total: Any, is_interrupted: bool) -> None:
    """Make total counts of validation batches say whether the validation was stopped within a batch."""
    total.ready = total.started = total.processed + is_interrupted
    total.completed = total.processed


def _correct_epoch(trainer: Any, validates_at_end: bool) -> None:
    """Make a resumed fit continue in the epoch, or after the epoch, in which the saved run was.

    A run that ends within an epoch (max_steps) counts it as processed: the resumed run would count it twice. After the
    last batch of an epoch Lightning would train on one more batch, unless a validation belongs there; with the counts
    of a checkpoint from the end of the last batch it starts the next epoch.

    Args:
        trainer: its counters are restored.
        validates_at_end: whether a validation belongs after the last batch of the epoch.
    """
    epochs, progress = trainer.fit_loop.epoch_progress, training_progress(trainer)
    is_counted = epochs.total.processed == epochs.total.started > 0
    if is_counted:
        for counts in (epochs.total, epochs.current):
            counts.processed = counts.completed = counts.started - 1
    if is_epoch_done(trainer) and (is_counted or not validates_at_end):
        for counts in (progress.total, progress.current):
            counts.completed = counts.processed - 1


class _Resumed(Callback):
    """Corrections that a resumed fit needs later.

    Args:
        validated_until: number of batches up to which validations are over, and are left out when batches are repeated.
        max_steps: the Trainer's `max_steps`, restored when validation starts.
        is_validation_first: whether a validation runs before the next training batch. The counts that made it run are
            corrected when it starts: in a checkpoint they would make it run again.
        metrics: values logged before that validation.
    """

    def __init__(
        self,
        validated_until: int = 0,
        max_steps: int | None = None,
        is_validation_first: bool = False,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        self.validated_until, self.max_steps = validated_until, max_steps
        self.is_validation_first, self.metrics = is_validation_first, metrics or {}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if batches_done(trainer) <= self.validated_until:
            trainer.fit_loop.epoch_loop._skip_next_val = True

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self.max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self.max_steps = self.max_steps, None
        if self.is_validation_first and not trainer.sanity_checking:
            self.is_validation_first = False
            _set_totals(trainer.fit_loop.epoch_loop.val_loop.batch_progress.total, is_interrupted=False)
            metrics = {name: torch.tensor(value, dtype=torch.float64) for name, value in self.metrics.items()}
            trainer._logger_connector._callback_metrics.update(metrics)


def set_batches_done_in_epoch(trainer: Any, count: int, is_last: bool = False) -> None:
    """Set the number of finished batches of the current epoch, and whether the epoch is then done."""
    progress = training_progress(trainer)
    difference = progress.current.processed - progress.current.completed
    progress.current.ready = progress.current.started = progress.current.processed = count
    progress.current.completed = count - difference
    progress.is_last_batch = is_last


def set_batches_of_epoch(trainer: Any, count: int) -> None:
    """Set the number of batches of the current epoch, when its first batch is requested."""
    trainer.fit_loop.max_batches = count
    trainer.fit_loop._data_fetcher.length = count


def runs_whole_epochs(trainer: Any) -> bool:
    """Whether an epoch is all batches of the training loader, without `limit_train_batches` or `overfit_batches`."""
    limit = trainer.limit_train_batches
    return isinstance(limit, float) and limit == 1.0 and not trainer.overfit_batches


def total_training_steps(trainer: Any) -> float:
    """Optimizer steps of the whole run; infinity where nothing limits them.

    `estimated_stepping_batches` opens the training loader if max_steps is not set. Lightning opens it only once, and
    here that would be before a resumed run restores its counters and the loader's position. So the loader is dropped:
    Lightning opens it again when training starts.
    """
    was_open = trainer.fit_loop._combined_loader is not None
    steps = trainer.estimated_stepping_batches
    if not was_open:
        trainer.fit_loop._combined_loader = None
    return steps


def training_progress(trainer: Any) -> Any:
    """Lightning's record of training batches.

    Its attributes `total` (all epochs) and `current` (this epoch) each hold the counts `ready` (fetched), `started`,
    `processed` (optimizer step done) and `completed` (hooks done); `is_last_batch` says whether the current batch is
    the last of its epoch.
    """
    return trainer.fit_loop.epoch_loop.batch_progress


def validation_progress(trainer: Any) -> dict[str, Any]:
    """A copy of the counters of validation batches: Lightning's `state_dict()`, in a tenth of its time."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    return {"total": {**vars(progress.total)}, "current": {**vars(progress.current)}} | {
        "is_last_batch": progress.is_last_batch
    }


@contextmanager
def counters_before_validation(trainer: Any, validation_counters: dict[str, Any] | None) -> Iterator[None]:
    """Inside a validation: the counters of the moment before it, for a checkpoint that is saved in the block.

    They are those of the hook `on_train_batch_end` of the last training batch. A run that resumes from such a
    checkpoint does not take the interrupted validation for a finished one.

    Args:
        trainer: in the middle of a validation.
        validation_counters: `validation_progress` in that hook; None leaves them as they are.
    """
    batches, validation = training_progress(trainer), trainer.fit_loop.epoch_loop.val_loop.batch_progress
    in_validation = validation.state_dict()
    for counts in (batches.total, batches.current):
        counts.completed -= 1
    if validation_counters is not None:
        validation.load_state_dict(validation_counters)
    try:
        yield
    finally:
        for counts in (batches.total, batches.current):
            counts.completed += 1
        validation.load_state_dict(in_validation)
