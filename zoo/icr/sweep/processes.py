"""Run a sweep in several processes, each of which trains a share of the members."""

import os
import subprocess
import sys

from zoo.console.progress_display import PLAIN_VARIABLE
from zoo.console.signals import PARENT_VARIABLE
from zoo.console.threads import environment_with_threads


def run_in_processes(argv: list[str], processes: int) -> None:
    """Start one process per share of the members and wait for all of them.

    Args:
        argv: the options of the sweep.
        processes: number of processes; the CPU's cores are divided among them unless OMP_NUM_THREADS is set.
    """
    command = [sys.executable, "-m", "zoo.icr.sweep", *argv, "--processes=1"]
    threads = max(1, (os.cpu_count() or 1) // processes)
    shares = [f"--share={i}/{processes}" for i in range(1, processes + 1)]
    # The processes share the terminal, in which only one line can be redrawn.
    environment = environment_with_threads(threads) | {PARENT_VARIABLE: "1", PLAIN_VARIABLE: "1"}
    children = [subprocess.Popen([*command, share], env=environment) for share in shares]
    try:
        for child in children:
            child.wait()
    finally:
        # After a signal, which they may have received too: a second one changes nothing while they save.
        for child in children:
            child.terminate()
        for child in children:
            child.wait()
