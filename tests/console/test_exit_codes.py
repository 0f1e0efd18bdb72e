"""run_command: one sentence for errors that the user can fix, tracebacks for bugs, exit codes for signals and pipes."""

import contextlib
import errno
import os
import signal
import subprocess
import sys

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from tests.commands import ROOT
from zoo.console.exit_codes import describe, run_command
from zoo.console.messages import did_you_mean, nearest, one_sentence
from zoo.console.signals import imports_that_end_on_signals
from zoo.errors import UserError


def raising(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("set --data.seq_len to at most 256"), "set --data.seq_len to at most 256"),
        (UserError("two\n  lines"), "two lines"),
        (UserError(), "UserError"),
        (FileNotFoundError("there is no checkpoint x"), "there is no checkpoint x"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "x.txt"), "x.txt: No such file or directory"),
        (MisconfigurationException("no such accelerator"), "no such accelerator"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe", "worker"), "worker: Broken pipe"),  # stdout is open
    ],
    ids=lambda value: repr(value)[:40],
)
def test_an_error_of_the_user_is_one_sentence(error, sentence, capsys, monkeypatch):
    assert run_command(raising(error)) == 1
    assert capsys.readouterr().err == f"zoo: {sentence}\n"
    monkeypatch.setenv("ZOO_DEBUG", "1")
    with pytest.raises(type(error)):
        run_command(raising(error))


@pytest.mark.parametrize(
    "error", [ValueError("bug"), TypeError("bug"), KeyError("bug"), AssertionError(), ImportError()]
)
def test_a_bug_is_raised_and_a_report_requested(error, capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(type(error)):
        run_command(raising(error))
    sys.excepthook(type(error), error, error.__traceback__)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].endswith("please report it with the traceback above")


def test_signals_and_success():
    def stopped_by_lightning():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            sys.exit(1)

    assert run_command(lambda: None) == 0
    assert run_command(raising(KeyboardInterrupt())) == 130
    assert run_command(stopped_by_lightning) == 130
    assert run_command(raising(SIGTERMException())) == 143
    with pytest.raises(SystemExit) as stop:
        run_command(raising(SystemExit(2)))
    assert stop.value.code == 2


@pytest.mark.parametrize("error", [ImportError("numpy is interrupted"), SystemExit(2)], ids=repr)
def test_ctrl_c_that_became_another_exception_is_silent(error, capsys):
    def interrupted_import():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise error  # noqa: B904

    def outer():
        try:
            interrupted_import()
        except ImportError as inner:
            raise RuntimeError from inner

    assert run_command(outer) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_too_little_memory_is_one_sentence(error, capsys):
    assert run_command(raising(error)) == 1
    assert capsys.readouterr().err.startswith("zoo: there is not enough memory: reduce")


def test_a_closed_pipe_is_silent():
    command = f"{sys.executable} -m zoo list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith("config")
    assert done.returncode in (0, 141)  # 0 where all fits into the pipe


def test_a_pipe_without_reader_is_silent():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "zoo", "list"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_during_imports_is_silent():
    script = (
        "import sys, zoo.__main__\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'zoo.cli.command_line': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "sys.exit(zoo.__main__.main(['fit']))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGTERM)])
def test_a_second_signal_does_not_interrupt_the_cleaning_up(first, second):
    done = []

    def action():
        try:
            os.kill(os.getpid(), first)
        finally:
            os.kill(os.getpid(), second)
            done.append("cleaned up")

    assert run_command(action) == 128 + first
    assert done == ["cleaned up"]
    assert signal.getsignal(second) is signal.SIG_DFL


@pytest.mark.parametrize("error", [None, RecursionError(), ImportError()], ids=repr)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_that_an_import_caught_ends_the_command(signum, code, error, capsys):
    def catching_import():
        with imports_that_end_on_signals():
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signum)
            if error:
                raise error

    assert run_command(catching_import) == code
    assert capsys.readouterr().err == ""
    # Ctrl-C is ignored until the interpreter ends; the other signals have their default again.
    assert signal.getsignal(signum) is (signal.SIG_IGN if signum == signal.SIGINT else signal.SIG_DFL)


def test_signals_in_a_command():
    def action(*signals):
        def send():
            for signum in signals:
                os.kill(os.getpid(), signum)

        return send

    assert run_command(action(signal.SIGUSR1)) == 0  # nothing to save
    assert run_command(action(signal.SIGUSR1, signal.SIGHUP)) == 129
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_command(action(signal.SIGHUP, signal.SIGTERM)) == 143  # under nohup
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_raised_while_a_command_is_terminated_is_silent(capsys):
    def fail_in_cleanup():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise RuntimeError

    assert run_command(fail_in_cleanup) == 143
    assert capsys.readouterr().err == ""


def test_imports_without_ctrl_c_keep_their_errors():
    with pytest.raises(ImportError, match="missing"), imports_that_end_on_signals():
        raise ImportError("missing")
    with imports_that_end_on_signals():
        pass


def test_describe_leaves_out_the_error_number():
    assert describe(PermissionError(errno.EACCES, "Permission denied", "run/x")) == "run/x: Permission denied"


def test_suggestions():
    assert nearest("max_stepz", ["max_steps", "min_steps"]) == "max_steps"
    assert nearest("early", ["early_stopping.mode", "checkpoint.mode"]) == "early_stopping.mode"
    assert nearest("patiense", ["early_stopping.patience"]) == "early_stopping.patience"
    assert nearest("xyz", ["early_stopping.patience"]) is None
    assert did_you_mean("fitt", ["fit"]) == "; did you mean fit?"
    assert did_you_mean("xyz", ["fit"], "; see --help") == "; see --help"
    assert one_sentence(" a\n b ") == "a b"
