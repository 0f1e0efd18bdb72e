"""The `zoo` command: answers what it can at once, and hands the rest to the command line proper.

Errors that the user can mend (ValueError, OSError and the like) end in one sentence and exit code 1; set ZOO_DEBUG=1 to
see where they came from. Anything else is a defect of ours and keeps its traceback.
"""

import sys
from difflib import get_close_matches

from zoo import __version__
from zoo.cli import overview
from zoo.console.exit_codes import run_command
from zoo.console.table import table


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 (bad input), 2 (usage), 130 (Ctrl-C) or 143 (SIGTERM)."""
    argv = sys.argv[1:] if argv is None else argv
    verb = argv[0] if argv else "--help"
    if verb in ("-h", "--help", "help"):
        print(overview.usage())
    elif verb == "--version":
        print(f"zoo {__version__}")
    elif verb == "list":
        print(table(overview.configs()))
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
    from zoo.cli.command_line import ZooCLI

    return run_command(lambda: ZooCLI(argv))


if __name__ == "__main__":
    sys.exit(main())
