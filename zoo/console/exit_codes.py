"""Run a command: errors that the user can fix become one sentence, all others keep their traceback."""

import os
import re
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from zoo.console.messages import one_sentence
from zoo.console.signals import Terminated, end_with_parent, is_main_thread, raised_stop_signals
from zoo.errors import UserError

OK, BAD_INPUT, USAGE = 0, 1, 2
HUNG_UP, INTERRUPTED, CLOSED_PIPE, TERMINATED = 129, 130, 141, 143  # 128 + number of the signal
# What torch says, in a RuntimeError, about a tensor for which there is not enough memory.
ALLOCATION_ERRORS = r"can't allocate memory|out of memory|Storage size calculation overflowed|Invalid buffer size"
REPORT = "zoo: this is a bug in the zoo, not in your input: please report it with the traceback above"


class UsageError(SystemExit):
    """The command's words are wrong; the exit code is 2.

    Args:
        sentence: what is wrong, which `run_command` prints.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(USAGE)
        self.sentence = sentence


def run_command(action: Callable[[], object]) -> int:
    """Call `action` and return the exit code.

    UserError, OSError and Lightning's MisconfigurationException are printed as one sentence (ZOO_DEBUG=1 shows the
    traceback). A closed pipe (`zoo list | head`) ends silently. Any other exception is raised again: the interpreter
    shows its traceback, then a request for a bug report. An exception raised while Ctrl-C was handled, as interrupted
    imports do, counts as Ctrl-C.

    Returns:
        0; 1 for bad input; 129 after SIGHUP; 130 after Ctrl-C; 141 where the reader of the output has gone; 143 after
        SIGTERM.
    """
    warnings.formatwarning = lambda message, *_, **__: f"zoo: {message}\n"
    end_with_parent()
    try:
        with raised_stop_signals():
            action()
            sys.stdout.flush()
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as stop:
        if isinstance(stop, Terminated):
            return int(str(stop.code))
        if _is_interruption(stop):  # Lightning turns Ctrl-C into exit code 1
            return _interrupted()
        if _is_raised(stop, "SIGTERMException"):
            return TERMINATED
        if isinstance(stop, UsageError):
            print_error(stop)
        raise
    except Exception as error:
        if code := _signal_code(error):
            return code
        if isinstance(error, BrokenPipeError) and _stdout_is_closed():
            return CLOSED_PIPE
        if not is_user_error(error):
            # The interpreter prints the traceback after this handler; the request for a report must follow it.
            sys.excepthook = _traceback_then_report
            raise
        if os.environ.get("ZOO_DEBUG"):
            raise
        print_error(error)
        return BAD_INPUT
    return OK


def print_error(error: BaseException) -> None:
    """Print an error as `run_command` shows it: one sentence, or the traceback of a bug or under ZOO_DEBUG=1."""
    if isinstance(error, UsageError):
        print(f"zoo: {error.sentence}", file=sys.stderr)
    elif not is_user_error(error):
        _traceback_then_report(type(error), error, error.__traceback__)
    elif os.environ.get("ZOO_DEBUG"):
        sys.__excepthook__(type(error), error, error.__traceback__)
    else:
        print(f"zoo: {describe(error)}", file=sys.stderr)
    sys.stderr.flush()


def is_user_error(error: BaseException) -> bool:
    """Whether the user can fix it: UserError, OSError, MisconfigurationException of Lightning, not enough memory."""
    known = isinstance(error, UserError | OSError) or _is_raised(error, "MisconfigurationException")
    return known or is_out_of_memory(error)


def user_error_behind(error: BaseException) -> BaseException | None:
    """The error of the user's that `error` was raised from, if there is one."""
    cause: BaseException | None = error
    while cause is not None and not is_user_error(cause):
        cause = cause.__cause__
    return cause


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python could not allocate memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and re.search(ALLOCATION_ERRORS, str(error)) is not None


def describe(error: BaseException) -> str:
    """The message of an error in one line, without the operating system's error number."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if is_out_of_memory(error):
        return "there is not enough memory: reduce the sizes of the model, or --data.batch_size"
    return one_sentence(str(error)) or type(error).__name__


def exception_chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and all those that it was raised from or while handling, each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop(0)
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            yield current
            waiting += [current.__cause__, current.__context__]


def _interrupted() -> int:
    """The exit code after Ctrl-C, which is ignored from now on: the interpreter would print a traceback."""
    if is_main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return INTERRUPTED


def _signal_code(error: BaseException) -> int | None:
    """The exit code of the signal that led to the exception, if one did."""
    if _is_interruption(error):
        return _interrupted()
    return next((int(str(one.code)) for one in exception_chain(error) if isinstance(one, Terminated)), None)


def _is_interruption(error: BaseException) -> bool:
    """Whether Ctrl-C led to the exception: some packages raise another one while they handle KeyboardInterrupt."""
    return any(isinstance(one, KeyboardInterrupt) for one in exception_chain(error))


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
