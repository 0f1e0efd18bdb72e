"""The closing message of `zoo fit`: the limit that a finished run has reached."""

from types import SimpleNamespace

import pytest
import torch

from zoo.callbacks import Charts, Checkpoint
from zoo.cli.closing_message import ClosingMessage


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "option"),
    [
        (20, -1, "max_steps"),
        (-1, 1, "max_epochs"),
        (100, 1, "max_epochs"),
        (20, 5, "max_steps"),
        (20, None, "max_steps"),
    ],
)
def test_a_finished_run_names_the_limit_that_it_has_reached(max_steps, max_epochs, option, capsys):
    trainer = SimpleNamespace(
        is_global_zero=True, fast_dev_run=False, global_step=20, max_steps=max_steps, max_epochs=max_epochs,
        checkpoint_callback=None, callbacks=[], default_root_dir="runs/a",
    )  # fmt: skip
    ClosingMessage(resumed_step=20).on_fit_end(trainer, None)
    assert capsys.readouterr().err.endswith(f"; nothing was left to do: raise --trainer.{option} to go on\n")


@pytest.mark.parametrize("has_test", [True, False])
def test_a_run_names_its_score_its_baselines_and_the_next_command(has_test, tmp_path, capsys):
    checkpoint = Checkpoint(monitor="val_loss")
    checkpoint.best_score, checkpoint.best_model_path = 1.5, str(tmp_path / "a b.ckpt")
    (tmp_path / "a b.ckpt").touch()
    charts = Charts(lambda *_: {"loss_unigram": 3.25, "loss_trigram": 1.75, "ppl_unigram": 25.79})
    charts._scores = {f"baseline/{name}": score for name, score in charts.baselines().items()}
    data = SimpleNamespace(has_split=lambda split: has_test)
    trainer = SimpleNamespace(
        is_global_zero=True, fast_dev_run=False, global_step=20, default_root_dir="runs/a", callback_metrics={},
        checkpoint_callback=checkpoint, callbacks=[charts], datamodule=data,
    )  # fmt: skip
    ClosingMessage().on_fit_end(trainer, None)
    verb = "test" if has_test else "validate"
    assert capsys.readouterr().err == (
        "runs/a: 20 steps, best val_loss 1.5 (unigram 3.25, trigram 1.75)\n"
        f"next: zoo {verb} --ckpt_path '{tmp_path}/a b.ckpt'\n"
    )
    # Where the monitored metric has no baseline, other metrics of the last validation do.
    checkpoint.monitor, trainer.callback_metrics = "val_accuracy", {"val_ppl": torch.tensor(4.0)}
    ClosingMessage().on_fit_end(trainer, None)
    assert "best val_accuracy 1.5; last val_ppl 4 (unigram 25.79)\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"val_check_interval": 200}, "--trainer.val_check_interval 200"),
        ({"limit_val_batches": 0}, "--trainer.limit_val_batches 0"),
        ({"check_val_every_n_epoch": 3, "val_check_interval": 1.0}, "--trainer.check_val_every_n_epoch 3"),
        ({"check_val_every_n_epoch": 1, "val_check_interval": 1.0}, "no epoch ended"),
    ],
)
def test_a_run_without_validation_names_its_only_checkpoint(settings, reason, tmp_path, capsys):
    checkpoint = Checkpoint()
    checkpoint.last_model_path = str(tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").touch()
    defaults = {
        "is_global_zero": True, "fast_dev_run": False, "global_step": 20, "default_root_dir": "runs/a", "datamodule": 0,
        "checkpoint_callback": checkpoint, "callbacks": [], "callback_metrics": {}, "limit_val_batches": 1.0,
        "check_val_every_n_epoch": None, "val_check_interval": 50,
    }  # fmt: skip
    ClosingMessage().on_fit_end(SimpleNamespace(**defaults | settings), None)
    assert capsys.readouterr().err == (
        f"runs/a: 20 steps; nothing was validated ({reason}): there is no best.ckpt, only last.ckpt\n"
        f"next: zoo test --ckpt_path {tmp_path}/last.ckpt\n"
    )
