"""The `zoo` command: answers what it can at once, and hands the rest to the command line proper.

Errors that the user can mend (ValueError, OSError and the like) end in one sentence and exit code 1; set ZOO_DEBUG=1 to
see where they came from. Anything else is a defect of ours and keeps its traceback.
"""

import os
import sys
import warnings
from collections.abc import Callable
from difflib import get_close_matches

from zoo import __version__, overview


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (bad input), 2 (usage), 130 (Ctrl-C) or 143 (SIGTERM)."""
    argv = sys.argv[1:] if argv is None else argv
    verb = argv[0] if argv else "--help"
    if verb in ("-h", "--help", "help"):
        print(overview.usage())
    elif verb == "--version":
        print(f"zoo {__version__}")
    elif verb == "list":
        print(overview.table(overview.configs()))
    elif verb not in overview.VERBS:
        near = get_close_matches(verb, overview.VERBS, n=1)
        print(f"zoo: there is no verb {verb!r}; {did_you_mean(near)}", file=sys.stderr)
        return 2
    else:
        return run(argv)
    return 0


def did_you_mean(near: list[str]) -> str:
    return f"did you mean {near[0]!r}?" if near else f"the verbs are {', '.join(overview.VERBS)}"


def run(argv: list[str]) -> int:
    """Run a verb through LightningCLI."""
    from zoo.cli import ZooCLI

    return guarded(lambda: ZooCLI(argv))


def guarded(action: Callable[[], object]) -> int:
    """Do it, and turn what goes wrong into a sentence and an exit code."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from zoo.parser import one_sentence

    warnings.formatwarning = lambda message, *_, **__: f"zoo: {message}\n"
    try:
        action()
    except (ValueError, OSError, MisconfigurationException, ModuleNotFoundError) as error:
        if os.environ.get("ZOO_DEBUG"):
            raise
        print(f"zoo: {one_sentence(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into exit code 1
            return 130
        if type(stop).__name__ == "SIGTERMException":
            return 143
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
