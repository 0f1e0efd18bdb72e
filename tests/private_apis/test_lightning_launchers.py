"""The private parts of Lightning's launchers that the zoo uses still exist and still act."""

import inspect
import os
import pickle
import signal
import subprocess
import sys

from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from tests.private_apis.test_lightning_trainer import quiet_trainer
from zoo.private_apis.lightning_launchers import (
    end_other_ranks,
    only_starts_ranks,
    run_ranks_through,
    stop_observing_ranks,
)


def test_ranks_of_ddp_fork_run_through_a_function():
    trainer = quiet_trainer(strategy="ddp_fork", devices=2)
    assert only_starts_ranks(trainer)
    assert not only_starts_ranks(quiet_trainer(strategy="ddp", devices=2))
    assert not only_starts_ranks(quiet_trainer())
    run_ranks_through(trainer, _record)
    assert trainer.strategy.launcher._wrapping_function(1, trainer) == ("_wrapping_function", 1, trainer)
    pickle.dumps(trainer.strategy.launcher._wrapping_function.func)
    # Lightning starts the replaced function, with the trainer as its first argument after the rank.
    source = inspect.getsource(_MultiProcessingLauncher.launch)
    assert "self._wrapping_function," in source
    assert "process_args = [trainer, function, args, kwargs, return_queue" in source
    # It calls the stage itself, so that callbacks are not told of an exception.
    assert "results = function(*args, **kwargs)" in inspect.getsource(_MultiProcessingLauncher._wrapping_function)


def _record(function, rank, *arguments):
    return (function.__name__, rank, *arguments)


def test_the_thread_that_kills_this_process_can_be_stopped():
    trainer = quiet_trainer(strategy="ddp", devices=2)
    trainer.strategy._configure_launcher()
    ended = subprocess.Popen(["false"])
    ended.wait()
    trainer.strategy.launcher.procs = observed = [ended]
    observer = _ChildProcessObserver(os.getpid(), observed)
    stop_observing_ranks(trainer)
    assert observer._run()  # nothing is left to observe
    assert trainer.strategy.launcher.procs == [ended]
    stop_observing_ranks(quiet_trainer())  # no launcher
    assert "_launch_process_observer(self.procs)" in inspect.getsource(_SubprocessScriptLauncher.launch)


def test_other_ranks_are_waited_for_then_ended():
    trainer = quiet_trainer(strategy="ddp", devices=2)
    ignoring = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        for script in ("print(1)", "import time; print(1, flush=True); time.sleep(60)", ignoring)
    ]
    for process in started:
        process.stdout.readline()
        process.stdout.close()
    trainer.strategy._configure_launcher()
    trainer.strategy.launcher.procs += started
    end_other_ranks(trainer, patience=0.3)
    assert [process.returncode for process in started] == [0, -signal.SIGTERM, -signal.SIGKILL]
    assert trainer.strategy.launcher.procs == []
    end_other_ranks(quiet_trainer())  # no other ranks
