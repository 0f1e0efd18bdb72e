"""Base data module: a run that is stopped and resumed sees the batches of the uninterrupted run.

The order of training samples is a function of (seed, epoch, offset): epoch e is the permutation drawn by
`stream(seed, "order", e)`, and `offset` is the number of its samples that have been used. A step takes the next
batch_size x ranks samples, and rank r takes the r-th part of them, so that 2 ranks with batch size B together see what
one rank with batch size 2B sees. Samples at the end of a permutation that do not fill a step are left out.

The position in the data is computed from the batches that the trainer has finished. Batches that workers have fetched
in advance do not count, nor does a batch that Ctrl-C interrupted. Gradients that wait for the rest of their
accumulation window are not stored in checkpoints; a run that stops within a window therefore repeats it from its first
batch.

If samples differ in length, a step holds samples of similar length: `bucketed` rearranges the permutation for the size
of a step. The order of an epoch is that of the step size with which the epoch started.

A run may be resumed with another batch size, number of ranks or accumulation. The rest of the epoch is then divided
into steps of the new size, and a last, smaller step holds what is left over, so that no sample is repeated or left out.
(A remainder of fewer samples than ranks is left out.)

With `limit_train_batches` the next epoch continues in the permutation; with `overfit_batches` every epoch is the start
of the dataset, in its own order.
"""

import signal
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from zoo.datamodules.sources.corpus import data_label
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
from zoo.registry import registered_name
from zoo.training.batches import bucketed
from zoo.training.fixed_arguments import check_fixed
from zoo.training.random_streams import global_seed, stream

# Makes a DataLoader of batches that are given as dataset indices.
Opener = Callable[[Iterable[Sequence[int]]], DataLoader]


class ZooDataModule(LightningDataModule):
    """Loaders of map-style datasets: resumable for training; for evaluation each sample once and in order.

    A subclass implements `dataset(split)`, and sets `collate` if torch's default does not fit its items. An item should
    contain its index, so that predictions can be put in order.

    Args:
        batch_size: samples per step on each rank; at least 1.
        num_workers: loader processes per rank; 0 loads in the main process. Samples and order do not depend on it.
        seed: seed of the training order; the default, null, uses `seed_everything`, or 0 if that is not set.
        shuffle: train in random order; false trains in the order of the dataset.
    """

    collate: Callable[[list], Any] | None = None
    changeable_arguments: ClassVar[tuple[str, ...]] = ("batch_size", "num_workers", "cache_dir")
    """Constructor arguments that a resumed run can change. Others change the training samples or their order."""

    def __init__(self, batch_size: int, num_workers: int = 0, seed: int | None = None, shuffle: bool = True) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may have nothing to predict
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        if num_workers < 0:
            raise UserError(f"set --data.num_workers to 0 or more, not {num_workers}")
        self.batch_size, self.num_workers, self.shuffle = batch_size, num_workers, shuffle
        self._given_seed = seed

    @abstractmethod
    def dataset(self, split: str) -> Dataset:
        """The map-style dataset of the split "train", "val", "test" or "predict"."""

    def train_lengths(self) -> torch.Tensor | None:
        """(samples,) the length of each training sample, if steps shall hold samples of similar length."""
        return None

    def __str__(self) -> str:  # Lightning's own opens every loader, and jsonargparse calls it when it formats messages
        return type(self).__name__

    @property
    def seed(self) -> int:
        """Seed of the training order."""
        return global_seed() if self._given_seed is None else self._given_seed

    def rank_and_ranks(self) -> tuple[int, int]:
        """This process's rank, and the number of ranks, among those that see different data."""
        sampler_arguments = (self.trainer and self.trainer.distributed_sampler_kwargs) or {}
        return sampler_arguments.get("rank", 0), sampler_arguments.get("num_replicas", 1)

    # ---- loaders

    def train_dataloader(self) -> "TrainLoader":
        # The order is that of the whole data set; each rank takes its part of every step.
        dataset = self.dataset("train")
        rank, ranks = self.rank_and_ranks()
        return TrainLoader(
            len(dataset),  # type: ignore[arg-type]
            self._opener(dataset),
            self.batch_size,
            rank=rank,
            ranks=ranks,
            seed=self.seed,
            shuffle=self.shuffle,
            trainer=self.trainer,
            lengths=self.train_lengths(),
            dataset=dataset,
        )

    def val_dataloader(self) -> "EvalLoader":
        return self._eval_loader("val")

    def test_dataloader(self) -> "EvalLoader":
        return self._eval_loader("test")

    def predict_dataloader(self) -> "EvalLoader":
        return self._eval_loader("predict")

    def _eval_loader(self, split: str) -> "EvalLoader":
        dataset = self.dataset(split)
        samples = len(dataset)  # type: ignore[arg-type]
        rank, ranks = self.rank_and_ranks()
        if samples < ranks and split != "predict":  # an idle rank would not take part in synchronising the metrics
            raise UserError(
                f"the {split} split has {samples} samples for {ranks} processes: set --trainer.devices to at most "
                f"{samples}"
            )
        # Rank r takes the samples r, r + ranks, ...
        own = range(rank, samples, ranks)
        batches = [own[i : i + self.batch_size] for i in range(0, len(own), self.batch_size)]
        return EvalLoader(self._opener(dataset), batches, dataset)

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The class's registered name, and the arguments that a resumed run cannot change."""
        return {"class": registered_name(self), "fixed": self._fixed_arguments()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the arguments of a resumed run with those in the checkpoint.

        Raises:
            UserError: an argument that cannot be changed differs; the message contains both values.
        """
        stored, current = state_dict.get("fixed", {}), self._fixed_arguments()
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        # Data of another label, which the user has allowed, may need other settings.
        labels = [data_label(str(of["data"])) for of in (stored, current) if "data" in of]
        names = current if len(set(labels)) < 2 else ["seed"]
        check_fixed(stored, current, (name for name in names if name != "data"), "--data.")

    def _fixed_arguments(self) -> dict[str, Any]:
        fixed = {name: value for name, value in self.hparams.items() if name not in self.changeable_arguments}
        return fixed | {"seed": self.seed}

    # ---- internals

    def _opener(self, dataset: Dataset) -> Opener:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

        def open_loader(batches: Iterable[Sequence[int]]) -> DataLoader:
            return DataLoader(
                dataset,
                batch_sampler=batches,  # type: ignore[arg-type]
                collate_fn=self.collate,
                num_workers=self.num_workers,
                pin_memory=on_gpu,
                generator=stream(self.seed, "workers"),  # otherwise torch's global generator would be advanced
                worker_init_fn=_ignore_ctrl_c,
            )

        return open_loader


def _ignore_ctrl_c(worker: int) -> None:
    """Ignore SIGINT in a loader process. Ctrl-C reaches every process, but only the main one handles it.

    SIGTERM needs no change: torch installs a handler in its workers that ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class EvalLoader:
    """A loader that yields the given batches in the given order, each time it is iterated."""

    def __init__(self, open_loader: Opener, batches: Sequence[Sequence[int]], dataset: Dataset) -> None:
        self._open, self._batches, self.dataset = open_loader, batches, dataset

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator:
        # A generator, because Lightning calls iter() once only to test that it works.
        yield from self._open(self._batches)


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
            raise UserError(
                f"the training split has {samples} samples, fewer than the {self._step_size} of one step"
                f" (batch_size {batch_size} on {ranks} process{'es' if ranks > 1 else ''}): lower --data.batch_size"
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
        order = torch.randperm(self._samples, generator=stream(self._seed, "order", position.epoch))
        if self._lengths is None:
            return order
        return bucketed(order, self._lengths, position.step, stream(self._seed, "buckets", position.epoch))
