"""One thread for small steps: by the size of the first batch, unless the user has set a number, and again on resume."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.callbacks.plane import Plane, Points
from zoo.__main__ import main
from zoo.callbacks import one_thread
from zoo.callbacks.one_thread import SMALL_STEP, THREAD_VARIABLES, OneThread
from zoo.errors import UserError


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    """torch with two threads, as if that were its default, and no variables of threads."""
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(one_thread, "DEFAULT", 2)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def start(callback, flops, device="cpu", ckpt_path=None):
    """Threads during a fit whose first batch has a number of floating-point operations, and after it."""
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)), ckpt_path=ckpt_path, is_global_zero=True
    )
    model = SimpleNamespace(count=lambda batch: 4, flops_per_item=lambda batch: flops / 4)
    callback.on_fit_start(trainer, model)
    callback.on_train_batch_start(trainer, model, None, 0)
    during = torch.get_num_threads()
    callback.teardown(trainer, model, "fit")
    return during, torch.get_num_threads()


def resumed(state):
    callback = OneThread()
    callback.load_state_dict(state)
    return callback


def test_the_size_of_a_step_decides(capsys):
    assert start(OneThread(), SMALL_STEP - 8) == (1, 2)
    assert capsys.readouterr().err.startswith("zoo: one thread, because a step is small")
    assert start(OneThread(), SMALL_STEP) == (2, 2)
    assert start(OneThread(), 8, device="cuda") == (2, 2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("variable", THREAD_VARIABLES)
def test_a_number_that_the_user_has_set_stays(variable, monkeypatch):
    monkeypatch.setenv(variable, "2")
    assert start(OneThread(), 8) == (2, 2)
    monkeypatch.delenv(variable)
    torch.set_num_threads(3)
    assert start(OneThread(), 8) == (3, 3)


@pytest.mark.parametrize("variable", THREAD_VARIABLES)
def test_a_variable_without_a_number_does_not_count(variable, monkeypatch):
    for value in ("abc", "", " ", "0", "-1", "1.5", "2x", "2 3", "9" * 20, "\u0662"):
        monkeypatch.setenv(variable, value)
        assert start(OneThread(), 8) == (1, 2), value
    for value in ("1", " 2 ", "+2", "2,1", "08"):
        monkeypatch.setenv(variable, value)
        assert start(OneThread(), 8) == (2, 2), value


def test_a_resumed_run_computes_with_as_many_threads_as_before(capsys):
    small, large = OneThread(), OneThread()
    start(small, 8), start(large, 1e12)
    assert (small.state_dict(), large.state_dict()) == ({"n_threads": 1}, {"n_threads": 2})
    capsys.readouterr()
    assert start(resumed({"n_threads": 1}), 1e12, ckpt_path="last.ckpt") == (1, 2)
    assert capsys.readouterr().err.startswith("zoo: one thread, as before the run was resumed; the environment")
    assert start(resumed({"n_threads": 2}), 8, ckpt_path="last.ckpt") == (2, 2)
    assert start(resumed({"n_threads": 1}), 8, device="cuda", ckpt_path="last.ckpt") == (2, 2)
    assert capsys.readouterr().err == ""
    undecided = OneThread().state_dict()  # saved before the first batch
    assert start(resumed(undecided), 8, ckpt_path="last.ckpt") == (1, 2)


@pytest.mark.parametrize(("state", "during"), [({"is_small": True}, 1), ({"is_small": False}, 2), (None, 2)])
def test_the_run_of_an_older_checkpoint_continues_as_it_began(state, during):
    callback = OneThread() if state is None else resumed(state)
    assert start(callback, 8, ckpt_path="last.ckpt") == (during, 2)
    assert callback.state_dict() == {"n_threads": during}


def test_a_run_begun_with_the_users_number_resumes_with_it(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    callback = OneThread()
    assert start(callback, 1e12) == (1, 1)
    monkeypatch.delenv("OMP_NUM_THREADS")
    torch.set_num_threads(2)
    assert start(resumed(callback.state_dict()), 1e12, ckpt_path="last.ckpt") == (1, 2)


def test_a_sentence_says_that_another_number_is_used(monkeypatch, capsys):
    monkeypatch.setattr(one_thread, "available_cores", lambda: 2)
    callback = resumed({"n_threads": 3})
    assert start(callback, 8, ckpt_path="last.ckpt") == (2, 2)
    difference = "the checkpoint was trained with 3 threads, this run uses 2"
    assert f"zoo: {difference}, because 2 cores are available: results" in capsys.readouterr().err
    monkeypatch.setattr(one_thread, "available_cores", lambda: 4)
    assert start(resumed({"n_threads": 3}), 8, ckpt_path="last.ckpt") == (3, 2)
    assert "zoo: 3 threads, as before the run was resumed" in capsys.readouterr().err
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert start(resumed({"n_threads": 3}), 8, ckpt_path="last.ckpt") == (2, 2)
    assert f"zoo: {difference}, because the number is set: results" in capsys.readouterr().err
    assert callback.state_dict() == {"n_threads": 2}


@pytest.mark.parametrize("n_threads", [0, -1, 1.5, "2", True])
def test_a_checkpoint_with_no_number_of_threads_is_refused(n_threads):
    with pytest.raises(UserError, match="n_threads must be"):
        resumed({"n_threads": n_threads})


class Stop(Callback):
    """Ends a run by an exception, as a pruned trial does, or by Ctrl-C."""

    def __init__(self, exception):
        self.exception = exception

    def on_train_batch_end(self, trainer, *_):
        raise self.exception


@pytest.mark.parametrize("exception", [ArithmeticError("a pruned trial"), KeyboardInterrupt()])
def test_a_run_that_fails_restores_the_threads_and_the_next_decides_afresh(exception, tmp_path):
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "limit_val_batches": 0, "max_steps": 1, "default_root_dir": tmp_path}
    callback = OneThread()
    with pytest.raises((ArithmeticError, KeyboardInterrupt, SystemExit)):
        Trainer(callbacks=[callback, Stop(exception)], **options).fit(Plane(), Points())
    assert callback.state_dict() == {"n_threads": 1}
    assert torch.get_num_threads() == 2
    for model in (Plane(), Plane()):
        model.flops_per_item = lambda batch: SMALL_STEP
        trainer = Trainer(callbacks=[callback], **options)
        trainer.fit(model, Points())
        assert callback.state_dict() == {"n_threads": 2}


def test_fit_stores_the_decision(tmp_path, capfd):
    options = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.logger=false"]
    assert main(["fit", "--config=tiny/llama_classifier", f"--output_dir={tmp_path}", *options]) == 0
    assert "zoo: one thread" in capfd.readouterr().err
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["OneThread"] == {"n_threads": 1}
    assert torch.get_num_threads() == 2
