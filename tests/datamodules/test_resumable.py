"""Order of training samples, division among processes, and exact resumption from every point of a run."""

import inspect
import os
import signal
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities import apply_func
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from tests.resume import (
    BATCH_END,
    EPOCH_END,
    VALIDATION_END,
    assert_resume_is_bitwise,
    assert_same_weights,
    train,
)
from zoo.datamodules.resumable import ZooDataModule
from zoo.datamodules.train_loader import TrainLoader
from zoo.optim import ResumedSchedule
from zoo.private_apis.lightning_api import batch_index, batches_done, total_training_steps
from zoo.training.random_streams import derive

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Points(ZooDataModule):
    """`samples` points on a noisy plane, with their indices."""

    def __init__(self, samples: int = 22, **options) -> None:
        super().__init__(**{"batch_size": 2, "seed": 3, **options})
        self.samples = samples

    def dataset(self, split: str) -> Dataset:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.samples, 4, generator=generator)
        return TensorDataset(x, x.sum(-1, keepdim=True), torch.arange(self.samples))


class Net(LightningModule):
    """A small network with dropout that is seeded by the step and a schedule over the whole run, as in the zoo.

    Args:
        total_steps: length of the schedule. Default: that of the run.
    """

    def __init__(self, total_steps: int | None = None) -> None:
        super().__init__()
        self.total_steps = total_steps
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))
        self.register_buffer("scale", torch.ones(1))  # DDP broadcasts buffers in each forward

    def on_train_batch_start(self, batch, batch_idx: int) -> None:
        torch.manual_seed(derive(7, "step", self.global_rank, batch_index(self.trainer)))

    def training_step(self, batch, batch_idx: int):
        x, y, _ = batch
        return nn.functional.mse_loss(self.net(x), y * self.scale)

    def validation_step(self, batch, batch_idx: int) -> None:
        self.log("val", nn.functional.mse_loss(self.net(batch[0]), batch[1]), sync_dist=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        steps = total_training_steps(self.trainer) if self.total_steps is None else self.total_steps
        schedule = ResumedSchedule(optimizer, lambda step: 1 - step / (steps + 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


# 22 samples in batches of 2: epochs of 11 steps; max_steps 14 ends in the middle of the second.
WHENEVER = (BATCH_END, VALIDATION_END, EPOCH_END)
CASES = {
    "every batch, across an epoch": {"max_steps": 14},
    "workers": {"max_steps": 14, "every": 5, "num_workers": 2},
    "in the dataset's order": {"max_steps": 14, "every": 4, "shuffle": False},
    "accumulation, also between steps": {"max_epochs": 2, "accumulate_grad_batches": 3},
    "accumulation, max_steps within an epoch": {"max_steps": 5, "accumulate_grad_batches": 4, "every": 3},
    "both limits": {"max_epochs": 2, "max_steps": 7, "accumulate_grad_batches": 2, "every": 3},
    "a limited epoch": {"max_epochs": 4, "limit_train_batches": 4, "every": 3},
    "validation within epochs": {"max_epochs": 3, "val_check_interval": 4, "hooks": WHENEVER, "every": 4},
    "validation between optimizer steps": {
        "max_epochs": 2,
        "accumulate_grad_batches": 2,
        "val_check_interval": 3,
        "hooks": (VALIDATION_END,),
    },
    "validation after epochs": {"max_epochs": 2, "hooks": WHENEVER, "every": 11},
    "the same batches": {"max_epochs": 3, "overfit_batches": 3},
}


@pytest.mark.parametrize("name", CASES)
def test_resume_is_bitwise(name: str, tmp_path):
    options = {"max_epochs": -1, "limit_val_batches": 2 if "val" in name else 0, **CASES[name]}
    data = {key: options.pop(key) for key in ("num_workers", "shuffle") if key in options}
    assert_resume_is_bitwise(Net, lambda: Points(**data), tmp_path, **options)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_is_bitwise_on_two_processes(accumulate: int, tmp_path):
    # Epochs of 5 steps; with two batches a step, the checkpoint at batch 3 is inside a window.
    options = {"max_epochs": 2, "accumulate_grad_batches": accumulate, "limit_val_batches": 0, "every": 3}
    assert_resume_is_bitwise(Net, lambda: Points(num_workers=accumulate - 1), tmp_path, devices=2, **options)


def test_run_resumed_after_every_step_equals_uninterrupted_run(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    torch.manual_seed(7)
    options = {"max_epochs": -1, "limit_val_batches": 0, "hooks": (BATCH_END,)}
    uninterrupted = train(Net(8), Points(samples=6), tmp_path / "uninterrupted", max_steps=8, **options)
    torch.manual_seed(7)
    checkpoint = None
    for step in range(1, 9):
        folder = tmp_path / f"{step}"
        weights = train(Net(8), Points(samples=6), folder, max_steps=step, resume=checkpoint, **options)
        checkpoint = folder / f"{BATCH_END}-{step:03d}.ckpt"
    assert_same_weights(uninterrupted, weights, "every step")


class Validated(Net):
    """`Net` with a training metric, and the metrics after each validation with the number of batches before it."""

    def __init__(self) -> None:
        super().__init__(9)
        self.validations: list[tuple[int, float, float]] = []

    def training_step(self, batch, batch_idx: int):
        loss = super().training_step(batch, batch_idx)
        self.log("train", loss)
        return loss

    def on_validation_end(self) -> None:
        metrics = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
        self.validations.append((batches_done(self.trainer), metrics["val"], metrics["train"]))


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": 2},
        {"max_epochs": 2, "accumulate_grad_batches": 2},
        {
            "max_epochs": -1,
            "max_steps": 3,
            "accumulate_grad_batches": 2,
            "val_check_interval": 2,
            "hooks": (BATCH_END, VALIDATION_END, EPOCH_END),
        },
    ],
)
def test_a_run_interrupted_twice_has_the_steps_and_validations_of_an_uninterrupted_run(options, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    options = {"limit_val_batches": 2, "hooks": (BATCH_END, VALIDATION_END, EPOCH_END), **options}

    def resumed_from(checkpoint, folder):
        """The checkpoints that a resumed run saves, in their order, after a comparison with the uninterrupted run."""
        module = Validated()
        got = train(module, Points(samples=6), folder, resume=checkpoint, **options)
        assert_same_weights(expected, got, folder.name)
        # Some validations were before the checkpoint.
        count = len(module.validations)
        assert module.validations == validations[len(validations) - count :], folder.name
        return sorted(folder.glob("on_*.ckpt"), key=lambda path: path.stat().st_mtime_ns)

    torch.manual_seed(7)
    whole = Validated()
    expected = train(whole, Points(samples=6), tmp_path / "uninterrupted", **options)
    validations = whole.validations
    for first in sorted((tmp_path / "uninterrupted").glob("on_*.ckpt")):
        for second in resumed_from(first, tmp_path / first.stem)[:1]:
            resumed_from(second, tmp_path / f"{first.stem}, {second.stem}")


class Interrupt(Callback):
    """Ctrl-C within batch `at`, then a checkpoint, as the zoo's callback writes it."""

    def __init__(self, at: int, path) -> None:
        self.at, self.path = at, path

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch, batch_idx: int) -> None:
        if batch_index(trainer) == self.at:
            raise KeyboardInterrupt

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("at", [0, 4, 9, 10, 11, 15])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_interrupted_batch_is_repeated(at: int, accumulate: int, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    options = {"max_epochs": 2, "accumulate_grad_batches": accumulate, "limit_val_batches": 0}
    torch.manual_seed(7)
    uninterrupted = train(Net(), Points(), tmp_path / "uninterrupted", **options)
    torch.manual_seed(7)
    trainer = Trainer(callbacks=[Interrupt(at, tmp_path / "cut.ckpt")], devices=1, **QUIET, **options)
    with pytest.raises(SystemExit):
        trainer.fit(Net(), Points())
    resumed = train(Net(), Points(), tmp_path / "resumed", resume=tmp_path / "cut.ckpt", **options)
    assert_same_weights(uninterrupted, resumed, f"batch {at}")


def loader(rank: int = 0, ranks: int = 1, batch_size: int = 2, samples: int = 11) -> TrainLoader:
    return TrainLoader(samples, lambda batches: batches, batch_size, rank=rank, ranks=ranks, seed=5)


def first(batches, count: int) -> list[list[int]]:
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def test_two_ranks_see_the_samples_of_one_rank_with_twice_the_batch():
    alone = first(loader(batch_size=4), 6)
    pairs = zip(first(loader(0, 2), 6), first(loader(1, 2), 6), strict=True)
    assert alone == [a + b for a, b in pairs]


def test_each_epoch_is_a_new_permutation_without_the_incomplete_step():
    assert len(loader()) == 5
    batches = first(loader(), 10)
    epochs = [list(chain(*batches[:5])), list(chain(*batches[5:]))]
    assert all(len(set(epoch)) == 10 for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_resumed_order_continues_at_its_offset_for_any_batch_size():
    resumed = loader(batch_size=1)
    resumed.load_state_dict({"epoch": 1, "offset": 4, "unused": 0})
    assert list(chain(*first(loader(), 10)[7:])) == list(chain(*first(resumed, 6)))


def test_evaluation_yields_every_sample_once_in_order():
    assert [i for batch in Points(samples=5).val_dataloader() for i in batch[2].tolist()] == list(range(5))


class Predict(Net):
    def predict_step(self, batch, batch_idx: int) -> torch.Tensor:
        self.trainer.indices += batch[2].tolist()
        return batch[2]

    def on_predict_end(self) -> None:
        torch.save(self.trainer.indices, f"{self.trainer.default_root_dir}/{self.global_rank}.pt")


@pytest.mark.parametrize("samples", [1, 5, 8])
def test_two_processes_evaluate_without_duplicates(samples: int, tmp_path):
    trainer = Trainer(devices=2, strategy="ddp_fork", default_root_dir=tmp_path, **QUIET)
    trainer.indices = []
    trainer.predict(Predict(), Points(samples=samples), return_predictions=False)
    seen = [torch.load(tmp_path / f"{rank}.pt") for rank in range(min(2, samples))]
    assert sorted(chain(*seen)) == list(range(samples))


def test_two_processes_validate_different_numbers_of_batches(tmp_path):
    data = Points(samples=5)  # three samples and two: two batches and one
    train(Net(), data, tmp_path, hooks=(VALIDATION_END,), devices=2, max_epochs=1)
    assert (tmp_path / f"{VALIDATION_END}-001.ckpt").exists()


def test_evaluation_needs_a_sample_for_each_process(monkeypatch):
    for rank in range(3):
        monkeypatch.setattr(Points, "rank_and_ranks", lambda _, rank=rank: (rank, 3))
        for loader in (Points(samples=2).val_dataloader, Points(samples=2).test_dataloader):
            with pytest.raises(ValueError, match=r"2 samples for 3 processes: set --trainer\.devices to at most 2"):
                loader()
        assert len(Points(samples=3).val_dataloader()) == 1
        assert len(Points(samples=2).predict_dataloader()) == (rank < 2)  # prediction does not synchronise


class Signalled(Dataset):
    """A dataset whose item n sends signal n to the loader process that fetches it."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), index)
        return index


def test_loader_processes_ignore_sigint_and_end_at_sigterm():
    open_loader = Points(num_workers=1)._opener(Signalled())
    handlers = {s: signal.signal(s, lambda *_: os.abort()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        batches = iter(open_loader([[signal.SIGINT]] * 9))
        assert next(batches).item() == signal.SIGINT
        [worker] = batches._workers
        worker.terminate()  # a SIGTERM
        worker.join(5)
        assert worker.exitcode == 0
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)


class ProcessNumbers(Points):
    """Points of which each item is the number of the process that loads it, and its index."""

    def dataset(self, split):
        class Items(Dataset):
            def __len__(self) -> int:
                return 5

            def __getitem__(self, index: int) -> tuple[int, int]:
                return os.getpid(), index

        return Items()


def test_loader_processes_persist_over_validations():
    validation = ProcessNumbers(num_workers=1, batch_size=2).val_dataloader()
    first, second = list(validation), [next(iter(validation)) for _ in range(2)]  # the second ones end early
    assert torch.cat([indices for _, indices in first]).tolist() == [0, 1, 2, 3, 4]
    assert [indices.tolist() for _, indices in second] == [[0, 1], [0, 1]]
    processes = {number for numbers, _ in first + second for number in numbers.tolist()}
    assert len(processes) == 1
    assert processes != {os.getpid()}
    assert torch.equal(list(validation)[-1][1], torch.tensor([4]))


def test_batches_for_a_gpu_are_in_pinned_memory():
    data = Points()
    for device, is_pinned in (("cuda", True), ("cpu", False)):
        strategy = SimpleNamespace(root_device=torch.device(device))
        data.trainer = SimpleNamespace(strategy=strategy, distributed_sampler_kwargs=None)
        assert data._opener(data.dataset("val"))([[0]]).pin_memory == is_pinned
    # Lightning copies tensors without waiting, except to a CPU.
    assert 'kwargs["non_blocking"] = True' in inspect.getsource(apply_func.move_data_to_device)


def test_fewer_samples_than_a_step_are_refused():
    with pytest.raises(ValueError, match="3 samples, fewer than the 4 of one step"):
        loader(batch_size=2, ranks=2, samples=3)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Points(batch_size=0)
    with pytest.raises(ValueError, match=r"--data\.num_workers must be at least 0, not -1"):
        Points(num_workers=-1)
