"""The loader of training batches: the order of samples, and the place at which a resumed run continues."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from lightning import Trainer
from torch.utils.data import DataLoader, Dataset

from zoo.errors import UserError
from zoo.private_apis.lightning_api import (
    batches_done,
    batches_done_in_epoch,
    is_epoch_done,
    progress_state,
    resume_counters,
    runs_whole_epochs,
    set_batches_done_in_epoch,
    set_batches_of_epoch,
)
from zoo.training.batches import bucketed
from zoo.training.random_streams import stream

# Makes a DataLoader of batches that are given as dataset indices.
Opener = Callable[[Iterable[Sequence[int]]], DataLoader]


class Position(NamedTuple):
    """A place in the training order."""

    epoch: int  # number of the permutation
    offset: int  # samples of the permutation that have been used
    step: int  # samples of a step when the permutation started


class TrainLoader:
    """A loader of training batches that starts where the trainer stopped. Lightning saves and restores its state.

    `len` is the number of steps in a permutation. Iterating continues past its end, with the next permutation, until
    the caller stops.

    Args:
        samples: size of the dataset.
        open_loader: makes a DataLoader of given batches.
        batch_size: samples per step on each rank.
        rank: rank of this process.
        ranks: number of ranks.
        seed: seed of the order.
        shuffle: yield samples in random order; false yields them in the order of the dataset.
        trainer: the trainer whose finished batches determine the position; None starts at the first sample.
        lengths: (samples,) length of each sample, if steps shall hold samples of similar length.
        dataset: the dataset, kept as an attribute as in torch's DataLoader; modules read training statistics from it.

    Raises:
        UserError: the samples do not fill one step.
    """

    def __init__(
        self,
        samples: int,
        open_loader: Opener,
        batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        trainer: Trainer | None = None,
        lengths: torch.Tensor | None = None,
        dataset: Dataset | None = None,
    ) -> None:
        self.dataset = dataset
        self._samples, self._open, self._seed, self._shuffle = samples, open_loader, seed, shuffle
        self._batch_size, self._rank, self._ranks, self._step_size = batch_size, rank, ranks, batch_size * ranks
        self._trainer, self._lengths = trainer, lengths
        # The next sample when the trainer had finished `_batches_before_start` batches.
        self._start = Position(0, 0, self._step_size)
        self._batches_before_start = 0
        self._epoch_batches: int | None = None  # batches of the resumed epoch, where it has another number of them
        if not len(self):
            if samples < ranks:
                raise UserError(
                    f"the training split has {samples} samples for {ranks} processes: set --trainer.devices to at most "
                    f"{max(samples, 1)}"
                )
            raise UserError(
                f"the training split has {samples} samples, fewer than the {self._step_size} of one step (batch_size "
                f"{batch_size} on {ranks} process{'es' if ranks > 1 else ''}): set --data.batch_size to at most "
                f"{samples // ranks}"
            )

    def __len__(self) -> int:
        return self._samples // self._step_size

    def __iter__(self) -> Iterator:
        if self._epoch_batches is not None and batches_done(self._trainer) > self._batches_before_start:
            set_batches_of_epoch(self._trainer, len(self))  # the epoch after the resumed one
            self._epoch_batches = None
        return self._iterate()

    def _iterate(self) -> Iterator:
        # A generator: the position is computed at the first batch, when Lightning has set its counters.
        if self._epoch_batches is not None:
            set_batches_of_epoch(self._trainer, self._epoch_batches)
        yield from self._open(self._batches_from(self._position()))

    # ---- checkpoints

    def state_dict(self) -> dict[str, int]:
        """The `Position` after the last optimizer step, "samples", "batches" of this epoch, and `progress_state`."""
        progress = progress_state(self._trainer)
        batches = len(self) if self._epoch_batches is None else self._epoch_batches
        sizes = {"samples": self._samples, "batches": batches}
        return self._position(progress["unused"])._asdict() | sizes | progress

    def load_state_dict(self, state: dict[str, int]) -> None:
        # Continue at the stored position, and count batches from here.
        self._start = Position(state["epoch"], state["offset"], state.get("step", self._step_size))
        if state.get("samples", self._samples) != self._samples:
            # A place in the permutation of other data means nothing here: start the next one.
            self._start = Position(self._start.epoch + 1, 0, self._step_size)
        if self._trainer is None:
            return
        resume_counters(self._trainer, state)
        self._fit_epoch(state.get("batches", len(self)))
        self._batches_before_start = batches_done(self._trainer)

    def _fit_epoch(self, batches: int) -> None:
        """Make Lightning's epoch end with the permutation, also where the rest of it has another number of steps.

        Args:
            batches: number of batches of the current epoch in the saved run.
        """
        trainer: Any = self._trainer
        finished, window = batches_done_in_epoch(trainer), trainer.accumulate_grad_batches
        is_done = is_epoch_done(trainer)
        if not runs_whole_epochs(trainer):  # epochs do not end with permutations: only start a window
            if not is_done:
                set_batches_done_in_epoch(trainer, finished - finished % window)
            return
        is_at_end = not self._steps_left(self._start)
        if is_done or is_at_end:
            self._start = Position(self._start.epoch + (self._start.offset > 0), 0, self._step_size)
        if is_done or (is_at_end and finished):
            set_batches_done_in_epoch(trainer, len(self), is_last=True)
            return
        left = self._steps_left(self._start)
        # Keep the count where nothing has changed; otherwise choose one that starts an accumulation window.
        if finished + left != batches or finished % window or finished >= len(self):
            finished = max(0, len(self) - left)
            finished -= finished % window
            set_batches_done_in_epoch(trainer, finished)
        if finished + left != len(self):
            self._epoch_batches = finished + left

    # ---- internals

    @property
    def _overfits(self) -> bool:
        return bool(getattr(self._trainer, "overfit_batches", 0))

    def _steps_left(self, position: Position) -> int:
        """Number of steps in the rest of a permutation."""
        steps, rest = divmod(self._samples - position.offset, self._step_size)
        is_resized = position.step != self._step_size or position.offset % self._step_size > 0
        # Where the step size has changed, a smaller step holds the rest: other samples are left out than in a
        # permutation that is divided into equal steps.
        return steps + (is_resized and rest >= self._ranks)

    def _position(self, unused: int = 0) -> Position:
        """The place after the finished batches, without the last `unused` of them."""
        # Count on from the start by the batches finished since: first to the end of its epoch, then by whole epochs.
        if self._trainer is None:
            return self._start
        if self._overfits:
            return Position(0, batches_done_in_epoch(self._trainer) * self._step_size, self._step_size)
        batches = batches_done(self._trainer) - self._batches_before_start - unused
        left = self._steps_left(self._start)
        if batches <= left:
            offset = min(self._start.offset + batches * self._step_size, self._samples)
            return self._start._replace(offset=offset)
        epochs, batches = divmod(batches - left, len(self))
        return Position(self._start.epoch + 1 + epochs, batches * self._step_size, self._step_size)

    def _batches_from(self, position: Position) -> Iterator[list[int]]:
        """This rank's part of every step from a position on, without end."""
        while True:
            # A step is a block of the permutation, of which this rank takes its slice.
            order, start = self._order(position), position.offset
            for _ in range(self._steps_left(position)):
                size = min(self._step_size, self._samples - start)
                first, end = (start + size * rank // self._ranks for rank in (self._rank, self._rank + 1))
                yield order[first:end].tolist()
                start += size
            position = Position(position.epoch + 1, 0, self._step_size)

    def _order(self, position: Position) -> torch.Tensor:
        """(samples,) the dataset's indices in the order of an epoch."""
        if self._overfits or not self._shuffle:
            return torch.arange(self._samples)
        order = torch.randperm(self._samples, device="cpu", generator=stream(self._seed, "order", position.epoch))
        if self._lengths is None:
            return order
        return bucketed(order, self._lengths, position.step, stream(self._seed, "buckets", position.epoch))
