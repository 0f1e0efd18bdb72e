"""Commands of the zoo in forked processes, which import nothing again; used by benchmarks and by tests."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def fork_command(argv: Sequence[object], folder: Path, name: str, prepare: Callable[[], object] | None = None) -> int:
    """Start `zoo` with these words in a forked process, without the seconds of imports, and return its number.

    Args:
        argv: the words after `zoo`.
        folder: its working directory; its output goes to NAME.out and NAME.err there.
        name: name of its output files.
        prepare: called in the new process before the command.
    """
    pid = os.fork()
    if pid:
        return pid
    code: Any = 1
    try:
        from zoo.__main__ import main

        words = [str(word) for word in argv]
        redirect_output(folder / f"{name}.out", folder / f"{name}.err")
        os.chdir(folder)
        sys.argv = ["zoo", *words]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):  # also where the parent itself ignores them
            signal.signal(signum, signal.SIG_DFL)
        if prepare:
            prepare()
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def redirect_output(path: str | Path, errors: str | Path | None = None) -> None:
    """Send standard output, and standard error with it or elsewhere, to files."""
    sys.stdout.flush()
    sys.stderr.flush()
    for number, target in ((1, path), (2, errors or path)):
        opened = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    # pytest replaces Python's streams by its own.
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115


def exit_code(pid: int) -> int:
    """Wait for a process; minus the signal's number if one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def free_port() -> int:
    """A port of 127.0.0.1 at which nothing listens."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]
