"""Checkpoints and early stopping on a model of one weight matrix, with expectations worked out by hand."""

import errno
import os
import signal

import pytest
import torch
from lightning.pytorch import Callback

from tests.callbacks.plane import Plane, Points, step_of, trainer
from zoo.callbacks import Checkpoint, EarlyStopping
from zoo.callbacks.checkpoint_io import AtomicCheckpointIO

# ---- checkpoint


def test_best_and_last_checkpoint(tmp_path):
    checkpoint = Checkpoint()
    t = trainer(tmp_path, checkpoint, max_epochs=4)
    t.fit(Plane([3.0, 1.0, 2.0, float("nan")]), Points())
    assert step_of(tmp_path / "best.ckpt") == 8  # after the second of four epochs of 4 steps
    assert step_of(tmp_path / "last.ckpt") == 16
    assert checkpoint.best_score == 1.0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_best_score_is_restored_on_resume(tmp_path):
    trainer(tmp_path, Checkpoint(), max_epochs=2).fit(Plane([1.0, 2.0]), Points())
    trainer(tmp_path, Checkpoint(), max_epochs=4).fit(Plane([1.5, 1.2]), Points(), ckpt_path=tmp_path / "last.ckpt")
    assert step_of(tmp_path / "best.ckpt") == 4


def test_last_is_saved_every_n_steps_and_at_the_end(tmp_path):
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, *_):
            last = tmp_path / "last.ckpt"
            seen.append(step_of(last) if last.exists() else 0)

    trainer(tmp_path, Checkpoint(every_n_steps=2), Watch(), max_steps=7, limit_val_batches=0).fit(Plane(), Points())
    assert seen == [0, 0, 2, 2, 4, 4, 6]
    assert step_of(tmp_path / "last.ckpt") == 7


def test_checkpoint_names_an_unknown_monitor(tmp_path):
    with pytest.raises(ValueError, match=r"'val_los' is not logged by this model, which logs val_loss"):
        trainer(tmp_path, Checkpoint(monitor="val_los"), max_epochs=1).fit(Plane(), Points())


def test_early_stopping_names_an_unknown_monitor(tmp_path):
    with pytest.raises(ValueError, match=r"early_stopping.monitor 'val_los' is not logged"):
        trainer(tmp_path, EarlyStopping("val_los", patience=1), max_epochs=1).fit(Plane(), Points())


def test_a_failed_save_stops_all_processes(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exception, match=r"cannot save the checkpoint|another process could not save"):
        trainer(tmp_path, Checkpoint(), max_epochs=1, strategy="ddp_fork", devices=2).fit(Plane(), Points())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_accumulated_step(tmp_path, signum):
    class Send(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 1:  # in the middle of a window of 3
                os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    with pytest.raises(SystemExit):
        trainer(tmp_path, Send(), Checkpoint(), max_steps=9, accumulate_grad_batches=3).fit(Plane(), Points(20))
    assert step_of(tmp_path / "last.ckpt") == 1
    assert signal.getsignal(signum) == before or signum == signal.SIGINT  # Lightning ignores SIGINT in shutdown
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_failed_save_keeps_the_old_file_and_says_why(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"last\.ckpt \(No space left on device\); the one before it is untouched"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_kill_during_a_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    if (child := os.fork()) == 0:
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert torch.load(path)["step"] == 1
    monkeypatch.undo()
    AtomicCheckpointIO().save_checkpoint({"step": 3}, path)  # the partial file does not prevent the next save
    assert torch.load(path)["step"] == 3


def test_loading_never_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match="pickled Python objects"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not (tmp_path / "evil").exists()


# ---- early stopping


def test_early_stopping_after_patience_validations_without_improvement(tmp_path):
    t = trainer(tmp_path, EarlyStopping(patience=2), max_epochs=10)
    t.fit(Plane([3.0, 2.0, 2.5, 2.2, 1.0]), Points())
    assert t.current_epoch == 4


def test_a_changed_patience_applies_on_resume(tmp_path):
    trainer(tmp_path, EarlyStopping(patience=5), Checkpoint(), max_epochs=2).fit(Plane([1.0, 2.0]), Points())
    t = trainer(tmp_path, EarlyStopping(patience=2), Checkpoint(), max_epochs=10)
    t.fit(Plane([3.0, 3.0, 3.0]), Points(), ckpt_path=tmp_path / "last.ckpt")
    assert t.current_epoch == 3  # one bad validation before the stop, one after it


def test_without_patience_nothing_stops(tmp_path):
    t = trainer(tmp_path, EarlyStopping(), max_epochs=4)
    t.fit(Plane([1.0, float("nan"), 2.0, 3.0]), Points())
    assert t.current_epoch == 4
