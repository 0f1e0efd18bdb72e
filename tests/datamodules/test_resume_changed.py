"""Runs resumed with another batch size, number of ranks or accumulation, or before a validation that is due."""

from collections import Counter
from itertools import chain

import pytest
import torch
from lightning import Callback

from tests.datamodules.test_resumable import Net, Points
from tests.resume import BATCH_END, EPOCH_END, VALIDATION_END, SaveAt, assert_same_weights, train
from zoo.datamodules.train_loader import TrainLoader
from zoo.private_apis.lightning_api import batches_done


class RecordingNet(Net):
    """Writes the indices of the samples that a process trains on into a file per rank, optimizer step by step."""

    def on_train_start(self) -> None:
        self.seen: list[list[int]] = []
        self.epochs: list[int] = []

    def training_step(self, batch, batch_idx: int):
        self.seen.append(batch[2].tolist())
        self.epochs.append(self.trainer.current_epoch)
        return super().training_step(batch, batch_idx)

    def on_train_end(self) -> None:
        torch.save((self.seen, self.epochs), f"{self.trainer.default_root_dir}/seen-{self.global_rank}.pt")


class SimilarLengths(Points):
    """Samples of different lengths, ordered so that a step holds similar ones."""

    def train_lengths(self):
        return torch.arange(self.samples) % 7


def seen_in(folder, ranks: int = 1):
    return [torch.load(folder / f"seen-{rank}.pt") for rank in range(ranks)]


FIRST = {"batch_size": 2, "devices": 1, "accumulate_grad_batches": 1}
CHANGES = {
    "larger batches": {"batch_size": 4},
    "smaller batches": {"batch_size": 1},
    "batches that do not divide the rest": {"batch_size": 3},
    "two ranks, batches that do not divide the rest": {"devices": 2, "batch_size": 3},
    "accumulation": {"accumulate_grad_batches": 4},
    "accumulation and batch size": {"accumulate_grad_batches": 2, "batch_size": 3},
}


def run(folder, data_class, stop=None, resume=None, **changes):
    """Train two epochs of 24 samples; without `stop` to the end, else until `stop` steps."""
    options = FIRST | changes
    data = data_class(samples=24, batch_size=options.pop("batch_size"))
    limits = {"max_epochs": 2} if stop is None else {"max_steps": stop, "max_epochs": -1}
    train(RecordingNet(), data, folder, resume=resume, hooks=(BATCH_END,), limit_val_batches=0, **limits, **options)


@pytest.mark.parametrize(
    ("data_class", "name", "stop"),
    [
        *((Points, name, 5) for name in CHANGES),
        (Points, "batches that do not divide the rest", 1),
        (SimilarLengths, "batches that do not divide the rest", 5),
        (SimilarLengths, "accumulation and batch size", 1),
    ],
)
def test_every_sample_of_the_epoch_is_seen_once(data_class, name, stop, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    ranks = CHANGES[name].get("devices", 1)
    run(tmp_path / "first", data_class, stop)
    run(tmp_path / "rest", data_class, resume=tmp_path / "first" / f"{BATCH_END}-{stop:03d}.ckpt", **CHANGES[name])
    [(before, _)] = seen_in(tmp_path / "first")
    assert len(before) == stop
    epochs = {0: Counter(chain(*before)), 1: Counter()}
    for batches, of in seen_in(tmp_path / "rest", ranks):
        for batch, epoch in zip(batches, of, strict=True):
            epochs[epoch].update(batch)
    assert epochs[0] == Counter(range(24))
    assert epochs[1] == Counter(range(24))


def test_a_second_change_and_a_stop_in_the_resumed_epoch(tmp_path, monkeypatch):
    """2, then 3, then 2 samples a step, and a stop with unchanged settings after the first change."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    torch.manual_seed(7)
    run(tmp_path / "a", SimilarLengths, 4)
    run(tmp_path / "b", SimilarLengths, resume=tmp_path / "a" / f"{BATCH_END}-004.ckpt", batch_size=3)
    middle = tmp_path / "b" / f"{BATCH_END}-006.ckpt"
    run(tmp_path / "c", SimilarLengths, resume=middle, batch_size=3)
    assert_same_weights(torch.load(tmp_path / "b" / "weights.pt"), torch.load(tmp_path / "c" / "weights.pt"), "stop")
    run(tmp_path / "d", SimilarLengths, resume=middle, batch_size=2)
    [(a, _)], [(b, _)], [(d, epochs)] = (seen_in(tmp_path / name) for name in "abd")
    used = Counter(chain(*a, *b[:2], *(batch for batch, epoch in zip(d, epochs, strict=True) if epoch == 0)))
    assert used == Counter(range(24))


def test_ranks_share_the_smaller_last_step():
    state = {"epoch": 0, "offset": 4, "step": 2, "samples": 23, "unused": 0, "validation_due": False}
    batches = []
    for rank in range(2):
        loader = TrainLoader(23, lambda batches: batches, 4, rank=rank, ranks=2, seed=5)
        loader.load_state_dict(state)
        batches.append([batch for batch, _ in zip(loader, range(3), strict=False)])
    assert [[len(batch) for batch in of] for of in batches] == [[4, 4, 1], [4, 4, 2]]
    order = [batch for batch, _ in zip(TrainLoader(23, lambda b: b, 1, seed=5), range(23), strict=False)]
    assert sorted(chain(*batches[0], *batches[1])) == sorted(chain(*order[4:]))


def test_data_of_another_size_starts_the_next_epoch(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    run(tmp_path / "first", Points, 11)
    checkpoint = tmp_path / "first" / f"{BATCH_END}-011.ckpt"
    train(RecordingNet(), Points(samples=10), tmp_path / "rest", resume=checkpoint, max_epochs=1, limit_val_batches=0)
    [(seen, _)] = seen_in(tmp_path / "rest")
    assert Counter(chain(*seen)) == Counter(range(10))


# ---- validations


class Validations(Callback):
    """Records the batches after which a validation started and ended, and its result; kills the run where told."""

    def __init__(self, kill: str = "", at: int = 0) -> None:
        self.kill, self.at, self.results = kill, at, []

    def _maybe_kill(self, trainer, hook: str) -> None:
        if self.kill == hook and batches_done(trainer) == self.at:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/killed.ckpt")
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer, *_):
        self._maybe_kill(trainer, "batch end")

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            self._maybe_kill(trainer, "within the validation")

    def on_validation_end(self, trainer, *_):
        self.results.append((batches_done(trainer), trainer.global_step, trainer.callback_metrics["val"].item()))
        self._maybe_kill(trainer, "validation end")


def fit(folder, callback, resume=None, **options):
    from lightning import Trainer

    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, devices=1,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder, limit_val_batches=3,
        callbacks=[callback, SaveAt(folder, ())], **options,
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    torch.manual_seed(7)
    try:
        trainer.fit(Net(), Points(), ckpt_path=resume)
    except SystemExit:
        return None
    return torch.load(folder / "weights.pt")


SCHEDULES = {  # epochs of 11 batches
    "within epochs": ({"max_epochs": 2, "val_check_interval": 4}, [4, 8, 15]),
    "across epochs": ({"max_steps": 14, "val_check_interval": 4, "check_val_every_n_epoch": None}, [4, 12]),
    "after epochs": ({"max_epochs": 2}, [11, 22]),
    "at the last step": ({"max_steps": 14, "max_epochs": -1, "val_check_interval": 7}, [7]),
    "last step of max_steps": ({"max_steps": 7, "max_epochs": -1, "val_check_interval": 7}, [7]),
    "last step is the end of an epoch": ({"max_steps": 11}, [11]),
    "inside a window": ({"max_epochs": 1, "val_check_interval": 3, "accumulate_grad_batches": 2}, [3, 6, 9]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_validation_that_was_due_runs_once(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    options, places = SCHEDULES[name]
    complete = Validations()
    weights = fit(tmp_path / "complete", complete, **options)
    assert {place for place, *_ in complete.results} >= set(places)
    for hook in ("batch end", "within the validation", "validation end"):
        for at in places[-1:] if hook == "within the validation" else places:
            killed, resumed = Validations(hook, at), Validations()
            folder = tmp_path / f"{hook} {at}"
            assert fit(folder, killed, **options) is None
            rest = fit(folder, resumed, resume=folder / "killed.ckpt", **options)
            assert killed.results + resumed.results == complete.results, (hook, at)
            if rest is not None:
                assert_same_weights(weights, rest, f"{hook} {at}")


def test_after_epochs_and_without_validations_on_resume(tmp_path, monkeypatch):
    """The stop at the end of an epoch, and then no validation: the next epoch starts."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    torch.manual_seed(7)
    hooks = (BATCH_END, VALIDATION_END, EPOCH_END)
    weights = train(Net(), Points(), tmp_path / "a", hooks=hooks, every=11, max_epochs=2, limit_val_batches=2)
    for hook in hooks:
        folder = tmp_path / hook
        rest = train(
            Net(), Points(), folder, resume=tmp_path / "a" / f"{hook}-011.ckpt", max_epochs=2, limit_val_batches=0
        )
        assert_same_weights(weights, rest, hook)
