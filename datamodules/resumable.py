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
of a step. A run resumed with another step size then sees another order.

With `limit_train_batches` the next epoch continues in the permutation; with `overfit_batches` every epoch is the start
of the dataset, in its own order.
"""

import signal
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Self

import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from zoo.errors import UserError, refuse_renamed
from zoo.private_apis.lightning_api import (
    batches_done,
    batches_done_in_epoch,
    is_batch_unfinished,
    is_epoch_done,
    take_back_batches,
)
from zoo.registry import registered_name
from zoo.training.batches import bucketed
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
    renamed_arguments: ClassVar[dict[str, str]] = {}
    """Old name of a constructor argument -> its new name, or a sentence where the argument no longer exists."""

    def __new__(cls, *_: Any, **arguments: Any) -> Self:
        """Refuse arguments by their old names; the message names the new one."""
        refuse_renamed(cls, arguments)
        return super().__new__(cls)

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
        """The class's registered name; Lightning stores a data module only if its state is not empty."""
        return {"class": registered_name(self)}

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
        self._batch_size, self._rank, self._step_size = batch_size, rank, batch_size * ranks
        self._trainer, self._lengths = trainer, lengths
        # (epoch, offset) of the next sample when the trainer had finished `_batches_before_start` batches.
        self._start = (0, 0)
        self._batches_before_start = 0
        if not len(self):
            raise UserError(
                f"the training split has {samples} samples, fewer than the {self._step_size} of one step"
                f" (batch_size {batch_size} on {ranks} process{'es' if ranks > 1 else ''}): lower --data.batch_size"
            )

    def __len__(self) -> int:
        return self._samples // self._step_size

    def __iter__(self) -> Iterator:
        # A generator: the position is computed at the first batch, when Lightning has set its counters.
        yield from self._open(self._batches_from(*self._position()))

    # ---- checkpoints

    def state_dict(self) -> dict[str, int]:
        """Epoch and offset after the last optimizer step, and the number of batches finished since ("unused")."""
        unused = self._batches_in_open_window()
        epoch, offset = self._position(unused)
        return {"epoch": epoch, "offset": offset, "unused": unused}

    def load_state_dict(self, state: dict[str, int]) -> None:
        # Continue at the stored position, and count batches from here.
        self._start = (state["epoch"], state["offset"])
        if self._trainer is None:
            return
        if state["unused"] or is_batch_unfinished(self._trainer):
            # Lightning would count an incomplete accumulation window, or an interrupted batch, as finished.
            take_back_batches(self._trainer, state["unused"])
        self._batches_before_start = batches_done(self._trainer)

    # ---- internals

    @property
    def _overfits(self) -> bool:
        return bool(getattr(self._trainer, "overfit_batches", 0))

    def _batches_in_open_window(self) -> int:
        """Number of finished batches whose gradients wait for the rest of their accumulation window."""
        if self._trainer is None or is_epoch_done(self._trainer):
            return 0  # the last batch of an epoch always takes an optimizer step
        return batches_done_in_epoch(self._trainer) % self._trainer.accumulate_grad_batches

    def _position(self, unused: int = 0) -> tuple[int, int]:
        """Epoch and offset of the sample that follows the finished batches, without the last `unused` of them."""
        # Count on from the start by the batches finished since: first to the end of its epoch, then by whole epochs.
        epoch, offset = self._start
        if self._trainer is None:
            return epoch, offset
        if self._overfits:
            return 0, batches_done_in_epoch(self._trainer) * self._step_size
        batches = batches_done(self._trainer) - self._batches_before_start - unused
        left_in_epoch = (self._samples - offset) // self._step_size
        if batches <= left_in_epoch:
            return epoch, offset + batches * self._step_size
        epochs, batches = divmod(batches - left_in_epoch, len(self))
        return epoch + 1 + epochs, batches * self._step_size

    def _batches_from(self, epoch: int, offset: int) -> Iterator[list[int]]:
        """This rank's part of every step from a position on, without end."""
        while True:
            # A step is a block of the permutation, of which this rank takes its slice; an incomplete one is left out.
            order = self._order(epoch)
            for step_start in range(offset, self._samples - self._step_size + 1, self._step_size):
                start = step_start + self._rank * self._batch_size
                yield order[start : start + self._batch_size].tolist()
            epoch, offset = epoch + 1, 0

    def _order(self, epoch: int) -> torch.Tensor:
        """(samples,) the dataset's indices in the order of an epoch."""
        if self._overfits or not self._shuffle:
            return torch.arange(self._samples)
        order = torch.randperm(self._samples, generator=stream(self._seed, "order", epoch))
        if self._lengths is None:
            return order
        return bucketed(order, self._lengths, self._step_size, stream(self._seed, "buckets", epoch))
