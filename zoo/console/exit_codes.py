"""Run a command: errors that the user can fix become one sentence, all others keep their traceback."""

import os
import sys
import warnings
from collections.abc import Callable

from zoo.console.messages import one_sentence
from zoo.errors import UserError

OK, BAD_INPUT, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
REPORT = "zoo: this is a bug in the zoo, not in your input: please report it with the traceback above"


def run_command(action: Callable[[], object]) -> int:
    """Call `action` and return the exit code.

    UserError, OSError and Lightning's MisconfigurationException are printed as one sentence (ZOO_DEBUG=1 shows the
    traceback). A closed pipe (`zoo list | head`) ends silently. Any other exception is raised again, after a request
    for a bug report.

    Returns:
        0; 1 for bad input; 130 after Ctrl-C; 143 after SIGTERM.
    """
    warnings.formatwarning = lambda message, *_, **__: f"zoo: {message}\n"
    try:
        action()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at exit: give it a file that accepts everything.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit code 1
            return INTERRUPTED
        if type(stop).__name__ == "SIGTERMException":
            return TERMINATED
        raise
    except Exception as error:
        if not is_user_error(error):
            # The interpreter prints the traceback after this handler; the request for a report must follow it.
            sys.excepthook = _traceback_then_report
            raise
        if os.environ.get("ZOO_DEBUG"):
            raise
        print(f"zoo: {one_sentence(str(error))}", file=sys.stderr)
        return BAD_INPUT
    return OK


def is_user_error(error: BaseException) -> bool:
    """Whether the user can fix it: UserError, OSError, or Lightning's MisconfigurationException."""
    if isinstance(error, UserError | OSError):
        return True
    lightning = sys.modules.get("lightning.pytorch.utilities.exceptions")  # not imported: nothing of it was raised
    return lightning is not None and isinstance(error, lightning.MisconfigurationException)


def _traceback_then_report(*exception_info) -> None:
    sys.__excepthook__(*exception_info)
    print(REPORT, file=sys.stderr)
