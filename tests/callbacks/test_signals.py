"""Signals during training in one process: what is saved, the exit code, the sentence, and a bitwise equal resume."""

import contextlib
import os
import re
import shutil
import signal
import subprocess

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment

from tests.callbacks.plane import Plane, Points, trainer
from zoo.callbacks import Checkpoint
from zoo.console.exit_codes import run_command
from zoo.console.signals import Terminated

CODES = {signal.SIGINT: 1, signal.SIGTERM: 143, signal.SIGHUP: 129}  # Lightning itself exits with 1 after Ctrl-C


@pytest.fixture(autouse=True)
def _unchanged_handlers():
    before = {signum: signal.getsignal(signum) for signum in (*CODES, signal.SIGUSR1)}
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored
    assert {signum: signal.getsignal(signum) for signum in before} == before


def send(*signals):
    for signum in signals:
        os.kill(os.getpid(), signum)


class At(Callback):
    """Call `action` at a hook, the n-th time that Lightning calls it."""

    def __init__(self, hook, action, n=1):
        self.calls = 0

        def on_hook(*_):
            self.calls += 1
            if self.calls == n:
                action()

        setattr(self, hook, on_hook)


def fit(folder, *callbacks, steps=8, resume=False, **options):
    """Train on batches of 2 of 16 points with a validation of 8 batches every 2 steps; the exit code, or 0."""
    options = {"max_steps": steps, "val_check_interval": 2, "check_val_every_n_epoch": None} | options
    torch.manual_seed(0)
    model = Plane(iter([4.0, 3.0, 2.0, 1.0]))
    checkpoint = next((one for one in callbacks if isinstance(one, Checkpoint)), None) or Checkpoint()
    run = trainer(folder, *(one for one in callbacks if one is not checkpoint), checkpoint, **options)
    try:
        run.fit(model, Points(16), ckpt_path=folder / "last.ckpt" if resume else None)
    except SystemExit as stop:
        return stop.code
    return 0


def contents(folder, name="last.ckpt"):
    """The entries of a checkpoint without its digest, which depends on the folder's name."""
    checkpoint = torch.load(folder / name, weights_only=True)
    del checkpoint["zoo_digest"]
    return checkpoint


def equal(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module")
def state_after_step_4(tmp_path_factory):
    """What last.ckpt holds if it is saved after step 4, before the validation of that step."""
    folder = tmp_path_factory.mktemp("step4")
    seen = {}
    fit(folder, Checkpoint(every_n_steps=4), At("on_validation_start", lambda: seen.update(contents(folder)), n=2))
    assert seen["global_step"] == 4
    seen["callbacks"]["Checkpoint"].pop("best_model_path")  # another folder
    return seen


@pytest.mark.parametrize("signum", CODES)
def test_a_signal_inside_a_validation_saves_the_state_before_it(tmp_path, signum, state_after_step_4, capfd):
    last = []
    hook = At("on_validation_batch_end", lambda: (last.append(1), send(signum), last.append(2)), n=8 + 2)
    assert fit(tmp_path, hook) == CODES[signum]
    assert last == [1]  # the handler raised: the rest of the validation was not waited for
    saved = contents(tmp_path)
    saved["callbacks"]["Checkpoint"].pop("best_model_path")
    assert equal(saved, state_after_step_4)
    name = "Ctrl-C" if signum == signal.SIGINT else signum.name
    assert capfd.readouterr().err.splitlines() == [
        f"zoo: stopped by {name} after step 4, which is saved; to continue, add --ckpt_path {tmp_path / 'last.ckpt'}"
    ]


@pytest.mark.parametrize(
    "hook", ["on_train_batch_start", "on_validation_batch_start", "on_validation_epoch_end", "on_validation_end"]
)
def test_a_run_stopped_anywhere_continues_bitwise(tmp_path, hook):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fit(whole, steps=8)
    n = {"on_train_batch_start": 4, "on_validation_batch_start": 11}.get(hook, 2)
    assert fit(stopped, At(hook, lambda: send(signal.SIGTERM), n)) == 143
    assert contents(stopped)["global_step"] == 4
    assert fit(stopped, resume=True) == 0
    expected, got = contents(whole), contents(stopped)
    assert equal(expected["state_dict"], got["state_dict"])
    assert equal(expected["optimizer_states"], got["optimizer_states"])
    assert got["global_step"] == 8


def test_a_validation_swallowing_the_exception_still_ends(tmp_path):
    class Swallow(Callback):
        def on_validation_batch_end(self, *_):
            with contextlib.suppress(Terminated):  # as Python does in __del__
                send(signal.SIGTERM)

    assert fit(tmp_path, Swallow()) == 143
    assert contents(tmp_path)["global_step"] == 2


@pytest.mark.parametrize("signals", [[signal.SIGINT] * 2, [signal.SIGINT] * 5, [signal.SIGTERM, signal.SIGINT]])
def test_further_signals_during_a_save_let_it_finish(tmp_path, signals, monkeypatch, capfd):
    replace = os.replace

    def slow_replace(*paths):
        send(*signals)
        replace(*paths)

    patch = At("on_train_batch_start", lambda: monkeypatch.setattr("os.replace", slow_replace), n=3)
    code = fit(tmp_path, patch, At("on_train_batch_start", lambda: send(signals[0]), n=3), steps=100)
    assert code == CODES[signals[0]]
    assert contents(tmp_path)["global_step"] == 3
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["best.ckpt", "last.ckpt"]
    first, last = [line for line in capfd.readouterr().err.splitlines() if line]
    assert first.endswith("saving and stopping after this step")
    assert "after step 3, which is saved; to continue, add --ckpt_path" in last


def test_a_second_ctrl_c_before_the_save_stops_at_once(tmp_path, capfd):
    two = At("on_train_batch_start", lambda: send(signal.SIGINT, signal.SIGINT, signal.SIGINT), n=4)
    assert fit(tmp_path, two) == 1
    assert contents(tmp_path)["global_step"] == 2
    sentence = f"stopped by Ctrl-C at step 3; saved is step 2; to continue, add --ckpt_path {tmp_path / 'last.ckpt'}"
    assert sentence in capfd.readouterr().err
    first = At("on_train_batch_start", lambda: send(signal.SIGINT, signal.SIGINT))
    assert fit(tmp_path / "new", first) == 1
    assert "at step 0; nothing is saved\n" in capfd.readouterr().err
    assert fit(tmp_path, At("on_train_batch_start", lambda: send(signal.SIGINT, signal.SIGINT)), resume=True) == 1
    assert "at step 2; nothing was saved since the run was resumed; to continue, add" in capfd.readouterr().err
    assert contents(tmp_path)["global_step"] == 2


def test_ctrl_c_in_the_sanity_check_saves_nothing(tmp_path, capfd):
    hook = At("on_validation_batch_end", lambda: send(signal.SIGINT))
    assert fit(tmp_path, hook, num_sanity_val_steps=2) == 1
    assert capfd.readouterr().err == "zoo: stopped at step 0; nothing is saved\n"
    assert not list(tmp_path.iterdir())


def test_sigusr1_saves_and_continues(tmp_path):
    steps = []

    def look():
        steps.append(contents(tmp_path)["global_step"] if (tmp_path / "last.ckpt").exists() else 0)

    ask = [At("on_train_batch_start", lambda: send(signal.SIGUSR1)), At("on_validation_start", lambda: send(
        signal.SIGUSR1), n=2)]  # fmt: skip
    looks = [At("on_train_batch_start", look, n=2), At("on_validation_batch_end", look, n=9)]
    assert fit(tmp_path, *ask, *looks) == 0
    assert steps == [1, 4]
    assert contents(tmp_path)["global_step"] == 8


def test_under_slurm_sigusr1_saves_and_requeues_once(tmp_path, monkeypatch, capsys):
    commands = []
    reply = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr("zoo.console.slurm.subprocess.run", lambda words, **_: commands.append(words) or reply)
    for name, value in {"NTASKS": 1, "JOB_ID": 7, "PROCID": 0, "LOCALID": 0, "NODEID": 0, "JOB_NAME": "x"}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    hooks = [At("on_train_batch_start", lambda: send(signal.SIGUSR1), n=n) for n in (2, 3)]
    look = At("on_train_batch_start", lambda: steps.append(contents(tmp_path)["global_step"]), n=3)
    steps = []
    plugins = [SLURMEnvironment(auto_requeue=True)]
    assert fit(tmp_path, look, *hooks, plugins=plugins, steps=4, limit_val_batches=0) == 0
    assert commands == [["scontrol", "requeue", "7"]]
    assert steps == [2]
    assert not list(tmp_path.glob("hpc*"))
    assert "zoo: SLURM job 7 is requeued\n" in capsys.readouterr().err
    # Before training nothing is to be saved.
    assert run_command(lambda: send(signal.SIGUSR1)) == 0
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert run_command(lambda: send(signal.SIGUSR1)) == 0
    assert commands[1:] == [["scontrol", "requeue", "7"], ["scontrol", "requeue", "5_2"]]


def test_a_removed_folder_is_one_sentence_and_the_state_is_saved(tmp_path):
    folder = tmp_path / "run"
    hook = At("on_train_batch_start", lambda: subprocess.run(["rm", "-r", folder], check=True), n=4)
    with pytest.raises(OSError, match=r"run was removed during training: best\.ckpt of step 4 was written to a new"):
        fit(folder, hook)
    assert contents(folder, "best.ckpt")["global_step"] == 4


@pytest.mark.parametrize("stop", [None, signal.SIGINT])
def test_a_folder_replaced_by_that_of_another_run_is_not_written(tmp_path, stop, capfd):
    folder = tmp_path / "run"

    def replace():
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "last.ckpt").write_bytes(b"of another run")
        if stop:
            send(stop)

    name, step = ("last.ckpt", 3) if stop else ("best.ckpt", 4)
    new = tmp_path / f"run-{os.getpid()}"
    sentence = f"{folder} was replaced during training: {name} of step {step} was written to {new}, and the run"
    with pytest.raises(OSError, match=re.escape(sentence)):
        fit(folder, At("on_train_batch_start", replace, n=3))
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]
    assert (folder / "last.ckpt").read_bytes() == b"of another run"
    assert contents(new, name)["global_step"] == step


def test_a_save_that_fails_after_a_signal_is_reported(tmp_path, monkeypatch, capfd):
    def full(*_):
        raise OSError(28, os.strerror(28))

    def fill_and_stop():
        monkeypatch.setattr("os.fsync", full)
        send(signal.SIGTERM)

    assert fit(tmp_path, At("on_validation_batch_end", fill_and_stop, n=9)) == 143
    assert "stopped by SIGTERM at step 4; cannot save the checkpoint" in (said := capfd.readouterr().err)
    assert "last.ckpt (No space left on device); the one before it is untouched" in said
    assert contents(tmp_path)["global_step"] == 2


def test_a_signal_during_the_exchange_of_the_ranks_is_not_lost(tmp_path):
    class Exchange(Checkpoint):
        """Signals arrive while this rank waits for the others, with what these have sent."""

        def agree(self, world_size):
            class Strategy:
                root_device = "cpu"

                def reduce(_, tensor, reduce_op):
                    send(signal.SIGTERM, signal.SIGUSR1)
                    return torch.maximum(tensor, torch.tensor(self.received))

            class Ranks:
                strategy = Strategy()

            Ranks.world_size = world_size
            return self._agreed_signals(Ranks())

    checkpoint = Exchange()
    checkpoint.received = [0, 0]
    checkpoint._signals.install()
    try:
        assert checkpoint.agree(2) == (False, False)
        assert checkpoint.agree(2) == (True, True)
        assert checkpoint._signals.stop == signal.SIGTERM
        checkpoint._signals.install()
        checkpoint.received = [signal.SIGINT, 1]
        assert checkpoint.agree(2) == (True, True)
    finally:
        checkpoint._signals.restore()


class Batches(Callback):
    """Number of training batches."""

    def __init__(self):
        self.count = 0

    def on_train_batch_end(self, *_):
        self.count += 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"val_check_interval": 4},
        {"val_check_interval": 4, "accumulate_grad_batches": 2},
        {"check_val_every_n_epoch": 2, "accumulate_grad_batches": 4},
        {"val_check_interval": 4, "check_val_every_n_epoch": None, "accumulate_grad_batches": 4},
    ],
)
def test_a_run_to_max_steps_continues_in_its_epoch(options, tmp_path):
    """Stops within an epoch and at its end, with and without a validation there: 6 batches are an epoch."""

    def train(folder, steps, resume=False):
        batches = Batches()
        run = trainer(folder, batches, Checkpoint(), max_steps=steps, **options)
        model = Plane(iter(range(50, 0, -1)))
        run.fit(model, Points(12), ckpt_path=folder / "last.ckpt" if resume else None)
        return batches.count, run.current_epoch, model.state_dict()

    torch.manual_seed(0)
    batches, epoch, weights = train(tmp_path / "uninterrupted", 15)
    for stop in (2, 3, 6):
        torch.manual_seed(0)
        before = train(tmp_path / str(stop), stop)[0]
        after, *end = train(tmp_path / str(stop), 15, resume=True)
        assert (before + after, end[0]) == (batches, epoch)
        assert equal(end[1], weights)
