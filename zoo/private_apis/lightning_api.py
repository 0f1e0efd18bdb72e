"""Lightning's undocumented counters of batches: read, and corrected when a run is saved or resumed.

tests/private_apis/test_lightning_progress.py fails when a new version of Lightning changes them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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
    """A copy of the counters of validation batches."""
    return trainer.fit_loop.epoch_loop.val_loop.batch_progress.state_dict()


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
