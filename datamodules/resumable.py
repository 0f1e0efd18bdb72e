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
of a step. The order of an epoch depends on the step size with which the epoch started.

A run may be resumed with another batch size, number of ranks or accumulation. The rest of the epoch is then divided
into steps of the new size, and a last, smaller step holds what is left over, so that no sample is repeated or left out.
(A remainder of fewer samples than ranks is left out.)

With `limit_train_batches` the next epoch continues in the permutation; with `overfit_batches` every epoch is the start
of the dataset, in its own order.
"""

import inspect
import os
import signal
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Self

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from zoo.datamodules.sources.corpus import data_label
from zoo.datamodules.train_loader import Opener, TrainLoader
from zoo.errors import UserError, check_counts, refuse_renamed
from zoo.registry import registered_name
from zoo.training.fixed_arguments import check_fixed
from zoo.training.random_streams import global_seed, stream


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
    text_arguments: ClassVar[tuple[str, ...]] = ()
    """Constructor arguments that decide how texts are written: a trained model needs the same ones as in training."""
    column_arguments: ClassVar[tuple[str, ...]] = ()
    """Constructor arguments that name the columns of which texts are made; other data may name them differently."""
    token_arguments: ClassVar[tuple[str, ...]] = ()
    """Constructor arguments that change the tokens a model reads: a change after training is reported."""
    renamed_arguments: ClassVar[dict[str, str]] = {}
    """Old name of a constructor argument -> its new name, or a sentence where the argument no longer exists."""

    given_arguments: frozenset[str] = frozenset()
    """Names of the constructor arguments that were given, also where they are equal to their defaults."""

    def __new__(cls, *positional: Any, **arguments: Any) -> Self:
        """Refuse arguments by their old names; the message names the new one."""
        refuse_renamed(cls, arguments)
        module = super().__new__(cls)
        names = [*inspect.signature(cls.__init__).parameters][1:] if positional else []
        module.given_arguments = frozenset([*names[: len(positional)], *arguments])
        return module

    def __init__(self, batch_size: int, num_workers: int = 0, seed: int | None = None, shuffle: bool = True) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may have nothing to predict
        check_counts(batch_size=batch_size)
        check_counts(0, **{"--data.num_workers": num_workers})
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
        # The order covers the complete data set; each rank takes its part of every step.
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

    # ---- several processes

    def fingerprint(self, split: str) -> dict[str, Any]:
        """Numbers and digests of a split, by name, which must be equal in all processes of a run.

        Args:
            split: "train", "val", "test" or "predict".

        Returns:
            "number of samples", and "digest" where the data set has one.
        """
        dataset: Any = self.dataset(split)
        values = {"number of samples": len(dataset)} if hasattr(dataset, "__len__") else {}
        return values | ({"digest": dataset.digest} if hasattr(dataset, "digest") else {})

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
            is_evaluation = isinstance(batches, Sequence)  # the batches of training are drawn one after the other
            return DataLoader(
                dataset,
                batch_sampler=batches,  # type: ignore[arg-type]
                collate_fn=self.collate,
                num_workers=self.num_workers,
                persistent_workers=is_evaluation and self.num_workers > 0,
                pin_memory=on_gpu,  # Lightning then copies batches to the GPU without waiting
                generator=stream(self.seed, "workers"),  # otherwise torch's global generator would be advanced
                worker_init_fn=_ignore_signals,
            )

        return open_loader


def _ignore_signals(worker: int) -> None:
    """Leave signals to the main process. Terminals and clusters send them to every process of a run.

    The main process needs its loader processes to finish a step, and ends them afterwards: SIGTERM from it counts.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has neither SIGHUP nor SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; elsewhere torch's handler ends the process at any SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # also in threads started later
        threading.Thread(target=_end_at_sigterm_of_parent, daemon=True).start()


def _end_at_sigterm_of_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


class EvalLoader:
    """A loader that yields the given batches in the given order, each time it is iterated.

    Its loader processes are started once, and wait from one evaluation to the next.
    """

    calibration_rows: Sequence = ()
    """Rows on which a model calibrates itself instead of on the batches; empty for these."""

    def __init__(self, open_loader: Opener, batches: Sequence[Sequence[int]], dataset: Dataset) -> None:
        self._open, self._batches, self.dataset = open_loader, batches, dataset
        self._loader: DataLoader | None = None

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator:
        # A generator, because Lightning calls iter() once only to test that it works.
        if self._loader is None:
            loader = self._open(self._batches)
            self._loader = loader if isinstance(loader, DataLoader) else None  # others may be iterated once only
            yield from loader
        else:
            yield from self._loader

    def __getstate__(self) -> dict[str, Any]:  # ddp_spawn sends it to other processes, without its own
        return {**vars(self), "_loader": None}
