"""Run a command: errors that the user can fix become one sentence, all others keep their traceback."""

import os
import select
import sys
import warnings
from collections.abc import Callable
from typing import Any

from zoo.console.messages import one_sentence
from zoo.errors import UserError

OK, BAD_INPUT, USAGE, INTERRUPTED, CLOSED_PIPE, TERMINATED = 0, 1, 2, 130, 141, 143  # 128 + number of the signal
REPORT = "zoo: this is a bug in the zoo, not in your input: please report it with the traceback above"


def run_command(action: Callable[[], object]) -> int:
    """Call `action` and return the exit code.

    UserError, OSError and Lightning's MisconfigurationException are printed as one sentence (ZOO_DEBUG=1 shows the
    traceback). A closed pipe (`zoo list | head`) ends silently. Any other exception is raised again: the interpreter
    shows its traceback, then a request for a bug report.

    Returns:
        0; 1 for bad input; 130 after Ctrl-C; 141 where the reader of the output has gone; 143 after SIGTERM.
    """
    warnings.formatwarning = lambda message, *_, **__: f"zoo: {message}\n"
    try:
        action()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit code 1
            return INTERRUPTED
        if _is_raised(stop, "SIGTERMException"):
            return TERMINATED
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            return CLOSED_PIPE
        if not is_user_error(error):
            # The interpreter prints the traceback after this handler; the request for a report must follow it.
            sys.excepthook = _traceback_then_report
            raise
        if os.environ.get("ZOO_DEBUG"):
            raise
        print(f"zoo: {describe(error)}", file=sys.stderr)
        return BAD_INPUT
    return OK


def is_user_error(error: BaseException) -> bool:
    """Whether the user can fix it: UserError, OSError, or Lightning's MisconfigurationException."""
    return isinstance(error, UserError | OSError) or _is_raised(error, "MisconfigurationException")


def describe(error: BaseException) -> str:
    """The message of an error in one line, without the operating system's error number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return one_sentence(str(error)) or type(error).__name__


def _is_raised(error: BaseException, name: str) -> bool:
    """Whether `error` is an instance of the class `name` of Lightning, which is not imported for the question."""
    lightning: Any = sys.modules.get("lightning.pytorch.utilities.exceptions")
    return lightning is not None and isinstance(error, getattr(lightning, name))


def _stdout_is_closed() -> bool:
    """Whether it is standard output whose pipe broke, rather than the pipe to a worker process."""
    try:
        stdout = sys.stdout.fileno()
    except OSError:  # not a file, as in a notebook
        return False
    if hasattr(select, "poll"):  # not on Windows
        poll = select.poll()
        poll.register(stdout, select.POLLOUT)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            return False
    # Python flushes stdout once more at exit: give it a file that accepts everything.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True


def _traceback_then_report(*exception_info: Any) -> None:
    sys.__excepthook__(*exception_info)
    print(REPORT, file=sys.stderr)
