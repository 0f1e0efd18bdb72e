"""The `zoo` command: answers help, version, list and pull without importing torch; `zoo.cli` runs every other verb."""

import os
import sys
import time
from importlib import import_module

from zoo import __version__
from zoo.cli import overview
from zoo.cli.pull import run_pull
from zoo.console.exit_codes import USAGE, run_command
from zoo.console.messages import refuse_non_utf8
from zoo.console.signals import imports_that_end_on_signals
from zoo.console.table import table
from zoo.console.threads import wait_briefly
from zoo.private_apis.deferred_imports import defer_imports

WITHOUT_TRAINER = {  # verb -> module in zoo.cli, and its function of the options
    "completion": ("completion", "print_completion"),
    "consolidate": ("consolidate", "consolidate"),
    "export": ("export", "export"),
    "push": ("push", "run_push"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code, one of those in `zoo.console.exit_codes`."""
    argv = sys.argv[1:] if argv is None else argv
    verb = argv[0] if argv else "--help"
    if verb in ("-h", "--help", "help"):
        return run_command(lambda: print(overview.usage()))
    if verb == "--version":
        return run_command(lambda: print(f"zoo {__version__}"))
    if verb == "list":
        return run_command(lambda: print(table(overview.listed(argv[1:]))))
    if verb == "pull":
        return run_command(lambda: run_pull(argv[1:]))
    if verb not in overview.VERBS:
        near = overview.nearest_verb(verb)
        hint = f"did you mean {near!r}?" if near else f"the verbs are {', '.join(overview.VERBS)}"
        print(f"zoo: there is no verb {verb!r}; {hint}", file=sys.stderr)
        return USAGE
    return run_command(lambda: _run_verb(argv))


def _run_verb(argv: list[str]) -> None:
    started = time.monotonic()  # a budget includes the imports
    refuse_non_utf8(argv)
    if is_one_of_several_processes():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # without warnings about ranks that have ended
    wait_briefly()
    with imports_that_end_on_signals():
        # Imported here, so that help and list need not import torch.
        defer_imports()
        from zoo.cli.command_line import ZooCLI
        from zoo.cli.ranks import Ranks
        from zoo.cli.world import World

    if argv[0] in WITHOUT_TRAINER:
        module, function = WITHOUT_TRAINER[argv[0]]
        getattr(import_module(f"zoo.cli.{module}"), function)(argv[1:])
        return
    ranks = Ranks(World.from_environment())
    with ranks.failures_reported():
        ZooCLI(argv, ranks=ranks, started=started)


def is_one_of_several_processes() -> bool:
    """Whether torchrun, SLURM or Lightning has started this process as one of several."""
    return any(name in os.environ for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


if __name__ == "__main__":
    sys.exit(main())
