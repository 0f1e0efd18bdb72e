"""One thread for small steps: by the size of the first batch, unless the user has set a number, and again on resume."""

from types import SimpleNamespace

import pytest
import torch

from zoo.__main__ import main
from zoo.callbacks import one_thread
from zoo.callbacks.one_thread import SMALL_STEP, THREAD_VARIABLES, OneThread


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


def resumed(callback):
    other = OneThread()
    other.load_state_dict(callback.state_dict())
    return other


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


def test_a_resumed_run_computes_with_as_many_threads_as_before():
    small, large = OneThread(), OneThread()
    start(small, 8), start(large, 1e12)
    assert start(resumed(small), 1e12, ckpt_path="last.ckpt") == (1, 2)
    assert start(resumed(large), 8, ckpt_path="last.ckpt") == (2, 2)
    assert start(resumed(OneThread()), 8, ckpt_path="last.ckpt") == (1, 2)  # saved before the first batch
    assert start(OneThread(), 8, ckpt_path="last.ckpt") == (2, 2)  # a checkpoint of an earlier version


def test_fit_stores_the_decision(tmp_path, capfd):
    options = ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--trainer.logger=false"]
    assert main(["fit", "--config=tiny/llama_classifier", f"--output_dir={tmp_path}", *options]) == 0
    assert "zoo: one thread" in capfd.readouterr().err
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["OneThread"] == {"is_small": True}
    assert torch.get_num_threads() == 2
