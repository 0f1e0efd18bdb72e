"""Shared by the tests of all models: N steps, a stop and N more steps give the bitwise weights of 2N steps."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer

from zoo.private_apis.lightning_api import batches_done

# Lightning hooks at which `SaveAt` can save a checkpoint.
BATCH_END, VALIDATION_END, EPOCH_END = "on_train_batch_end", "on_validation_end", "on_train_epoch_end"


class SaveAt(Callback):
    """Save `<hook>-<finished batches>.ckpt` at each of the given hooks, and the last weights."""

    def __init__(self, folder: Path, hooks: tuple[str, ...], every: int = 1) -> None:
        self.folder, self.hooks, self.every = folder, hooks, every

    def _save(self, trainer: Trainer, hook: str) -> None:
        batches = batches_done(trainer)
        if hook in self.hooks and not trainer.sanity_checking and batches % self.every == 0:
            trainer.save_checkpoint(self.folder / f"{hook}-{batches:03d}.ckpt")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._save(trainer, BATCH_END)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self._save(trainer, VALIDATION_END)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self._save(trainer, EPOCH_END)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:  # a file, because the weights of a forked process are lost
            torch.save(module.state_dict(), self.folder / "weights.pt")


def train(
    module: LightningModule,
    data: LightningDataModule,
    folder: Path,
    *,
    hooks: tuple[str, ...] = (),
    every: int = 1,
    resume: Path | None = None,
    devices: int = 1,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """Train on the CPU with `devices` processes, without output, and return the last weights."""
    folder.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        callbacks=[SaveAt(folder, hooks, every)],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, data, ckpt_path=resume)
    return torch.load(folder / "weights.pt", weights_only=True)


def assert_resume_is_bitwise(
    make_module: Callable[[], LightningModule],
    make_data: Callable[[], LightningDataModule],
    folder: Path,
    *,
    hooks: tuple[str, ...] = (BATCH_END,),
    every: int = 1,
    seed: int = 7,
    **options: Any,
) -> list[Path]:
    """Train once, save a checkpoint at each of `hooks`, resume from each checkpoint, and compare the last weights.

    Each resumed run starts with other random weights and another state of the global generator, so that it shares only
    the checkpoint with the first run. `options` are passed to `train`: max_steps (or max_epochs), devices,
    accumulate_grad_batches, val_check_interval and so on. Returns the checkpoints.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", str(seed))
        torch.manual_seed(seed)
        uninterrupted = train(make_module(), make_data(), folder / "uninterrupted", hooks=hooks, every=every, **options)
        checkpoints = sorted((folder / "uninterrupted").glob("*.ckpt"))
        assert checkpoints, "the run was too short for any checkpoint"
        for checkpoint in checkpoints:
            torch.manual_seed(seed + 1)
            resumed = train(make_module(), make_data(), folder / checkpoint.stem, resume=checkpoint, **options)
            assert_same_weights(uninterrupted, resumed, checkpoint.stem)
    return checkpoints


def assert_same_weights(expected: Mapping[str, torch.Tensor], got: Mapping[str, torch.Tensor], label: str) -> None:
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), f"resumed from {label}: {name} differs"
