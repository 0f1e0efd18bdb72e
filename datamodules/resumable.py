"""The base of all data of the zoo: a run that is stopped and resumed sees what the uninterrupted run sees.

The order of training samples is a function of (seed, epoch, offset): epoch e is the permutation that
`stream(seed, "order", e)` draws, and `offset` says how many of its samples have been used. A step takes the
next batch_size x ranks of them, and rank r the r-th part, so that 2 ranks with batch B see together what one
with batch 2B sees. Samples at the end that fill no step are left out.

Where a run stands is read from the batches that the trainer has finished: neither what workers have fetched
ahead nor a batch that Ctrl-C cut short counts. Gradients that wait for the rest of their accumulation window
are in no checkpoint, so a run that stops inside a window goes back to its first batch.

Where samples differ in length, those of like length share a step: the permutation is rearranged by `bucketed`,
for the size of a step, and a run resumed with another size sees another order.

With `limit_train_batches` the next epoch goes on in the permutation; with `overfit_batches` every epoch is
the beginning of the dataset, in its own order.
"""

import signal
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from zoo.errors import UserError
from zoo.registry import registered_name
from zoo.training.batches import bucketed
from zoo.training.random_streams import global_seed, stream

# Opens a DataLoader on batches of dataset indices.
Opener = Callable[[Iterable[Sequence[int]]], DataLoader]


class ZooDataModule(LightningDataModule):
    """Loaders over map-style datasets: resumable for training, each sample once and in order elsewhere.

    A subclass gives `dataset(split)`, and `collate` where torch's default does not do. An item should carry
    its index, for predictions to be put back in order.

    Args:
        batch_size: samples per step on each rank.
        num_workers: loader processes per rank; the samples and their order do not depend on it.
        seed: of the order; by default the run's own (`seed_everything`), else 0.
        shuffle: False trains in the dataset's own order.
    """

    collate: Callable[[list], Any] | None = None

    def __init__(
        self, batch_size: int, num_workers: int = 0, seed: int | None = None, shuffle: bool = True
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may have nothing to predict
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        self.batch_size, self.num_workers, self.shuffle = batch_size, num_workers, shuffle
        self._given_seed = seed

    @abstractmethod
    def dataset(self, split: str) -> Dataset:
        """The map-style dataset of "train", "val", "test" or "predict"."""

    def train_lengths(self) -> torch.Tensor | None:
        """(samples,) the length of each training sample, where those of like length are to share a step."""
        return None

    def __str__(self) -> str:  # Lightning's opens every loader; jsonargparse asks for it in passing
        return type(self).__name__

    @property
    def seed(self) -> int:
        return global_seed() if self._given_seed is None else self._given_seed

    def train_dataloader(self) -> "TrainLoader":
        dataset = self.dataset("train")
        rank, ranks = self._place()
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
        rank, ranks = self._place()
        if samples < ranks and split != "predict":  # an idle rank would not take part in the others' metrics
            raise UserError(f"the {split} split has {samples} samples for {ranks} processes: lower trainer.devices")
        mine = range(rank, samples, ranks)
        batches = [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]
        return EvalLoader(self._opener(dataset), batches, dataset)

    def state_dict(self) -> dict[str, Any]:
        """Non-empty, so that Lightning stores the class's name in checkpoints."""
        return {"class": registered_name(self)}

    def _place(self) -> tuple[int, int]:
        """This process's (rank, number of ranks), among those that see different data."""
        share = (self.trainer and self.trainer.distributed_sampler_kwargs) or {}
        return share.get("rank", 0), share.get("num_replicas", 1)

    def _opener(self, dataset: Dataset) -> Opener:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

        def open_loader(batches: Iterable[Sequence[int]]) -> DataLoader:
            return DataLoader(
                dataset,
                batch_sampler=batches,  # type: ignore[arg-type]
                collate_fn=self.collate,
                num_workers=self.num_workers,
                pin_memory=on_gpu,
                generator=stream(self.seed, "workers"),  # the global one is not ours to draw from
                worker_init_fn=_ignore_ctrl_c,
            )

        return open_loader


def _ignore_ctrl_c(worker: int) -> None:
    """Ctrl-C reaches every process: it is for the main one, whose handler a forked worker would run as well.

    SIGTERM needs no such care: torch gives its workers a handler of their own, under which they end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class EvalLoader:
    """The given batches, in the given order, each time it is iterated."""

    def __init__(self, open_loader: Opener, batches: Sequence[Sequence[int]], dataset: Dataset) -> None:
        self._open, self._batches, self.dataset = open_loader, batches, dataset

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator:
        yield from self._open(self._batches)  # lazily: Lightning calls iter() once only to see whether it can


class TrainLoader:
    """Training batches from wherever the trainer stands. Lightning saves and restores its state by itself.

    `len` is the number of steps in a whole permutation of `samples`; iterating goes on past its end, into the
    next permutation, and whoever iterates stops.

    Raises:
        ValueError: the samples do not fill one step.
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
        self.dataset = dataset  # as torch's DataLoader has it: modules read training statistics from it
        self._samples, self._open, self._seed, self._shuffle = samples, open_loader, seed, shuffle
        self._batch_size, self._rank, self._step = batch_size, rank, batch_size * ranks
        self._trainer, self._lengths = trainer, lengths
        self._start = (0, 0)  # epoch and offset, when the trainer had finished `_finished_before` batches
        self._finished_before = 0
        if not len(self):
            raise UserError(
                f"the training split has {samples} samples, fewer than the {self._step} of one step"
                f" (batch_size {batch_size} on {ranks} process{'es' if ranks > 1 else ''}): lower batch_size"
            )

    def __len__(self) -> int:
        return self._samples // self._step

    def __iter__(self) -> Iterator:
        # A generator: the place is looked up at the first batch, when Lightning has settled its counters.
        yield from self._open(self._batches(*self._place()))

    def state_dict(self) -> dict[str, int]:
        """Epoch and offset where the last optimizer step ended, and how many batches were finished since."""
        unused = self._unused()
        epoch, offset = self._place(unused)
        return {"epoch": epoch, "offset": offset, "unused": unused}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._start = (state["epoch"], state["offset"])
        progress = self._progress
        if progress is None:
            return
        if state["unused"] or progress.total.ready > progress.total.processed:
            # Lightning would count an unfinished window, or an unfinished batch, as done.
            for count in (progress.total, progress.current):
                count.processed -= state["unused"]
                count.ready = count.started = count.completed = count.processed
            progress.is_last_batch = False
        self._finished_before = progress.total.processed

    @property
    def _progress(self) -> Any:
        """Lightning's counts of training batches: `total` and `current` (in this epoch)."""
        return self._trainer and self._trainer.fit_loop.epoch_loop.batch_progress

    @property
    def _overfits(self) -> bool:
        return bool(getattr(self._trainer, "overfit_batches", 0))

    def _unused(self) -> int:
        """How many finished batches have gradients that wait for the rest of their accumulation window."""
        progress = self._progress
        if self._trainer is None or (
            progress.is_last_batch and progress.current.processed == progress.current.ready
        ):
            return 0  # an epoch's last batch closes its window early
        return progress.current.processed % self._trainer.accumulate_grad_batches

    def _place(self, unused: int = 0) -> tuple[int, int]:
        """Epoch and offset of the batch after those that the trainer has finished, less the last `unused`."""
        epoch, offset = self._start
        if self._progress is None:
            return epoch, offset
        if self._overfits:
            return 0, self._progress.current.processed * self._step
        batches = self._progress.total.processed - self._finished_before - unused
        left = (self._samples - offset) // self._step
        if batches <= left:
            return epoch, offset + batches * self._step
        epochs, batches = divmod(batches - left, len(self))
        return epoch + 1 + epochs, batches * self._step

    def _batches(self, epoch: int, offset: int) -> Iterator[list[int]]:
        """This rank's share of every step from there on."""
        while True:
            order = self._order(epoch)
            for step in range(offset, self._samples - self._step + 1, self._step):
                mine = step + self._rank * self._batch_size
                yield order[mine : mine + self._batch_size].tolist()
            epoch, offset = epoch + 1, 0

    def _order(self, epoch: int) -> torch.Tensor:
        """(samples,) the dataset's indices in this epoch's order."""
        if self._overfits or not self._shuffle:
            return torch.arange(self._samples)
        order = torch.randperm(self._samples, generator=stream(self._seed, "order", epoch))
        if self._lengths is None:
            return order
        return bucketed(order, self._lengths, self._step, stream(self._seed, "buckets", epoch))
