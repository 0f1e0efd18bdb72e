"""Train the configs of the demo in processes, several at a time."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from zoo.console.progress_display import PLAIN_VARIABLE
from zoo.console.signals import PARENT_VARIABLE, signal_name
from zoo.console.threads import environment_with_threads
from zoo.demo.schedule import Schedule
from zoo.errors import UserError


def run_in_processes(schedule: Schedule, processes: int, output_dir: Path, started: float) -> dict[str, dict[str, str]]:
    """Train each config in a process, with one thread unless OMP_NUM_THREADS is set, and return config -> row.

    Each process prints its row and, where it fails, the reason; the demo then ends with its exit code.

    Args:
        schedule: the configs in their order.
        processes: number of processes at a time.
        output_dir: folder of the runs.
        started: `time.time()` at the start of the demo.
    """
    # The processes share the terminal, in which only one line can be redrawn.
    environment = environment_with_threads(1) | {PARENT_VARIABLE: "1", PLAIN_VARIABLE: "1"}
    options = [f"--output_dir={output_dir}", f"--processes={processes}", f"--started={started}"]
    waiting = list(range(len(schedule.configs)))
    running: dict[int, subprocess.Popen[bytes]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{place}.json" for place in waiting]
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    place = waiting.pop(0)
                    own = [f"--place={place}", f"--row={files[place]}"]
                    command = [sys.executable, "-m", "zoo.demo", *options, *own, "--", *schedule.configs]
                    running[place] = subprocess.Popen(command, env=environment)
                time.sleep(0.1)
                for place, child in list(running.items()):
                    if child.poll() is not None:
                        del running[place]
                        if child.returncode < 0:
                            raise UserError(
                                f"the process that trained {schedule.configs[place]} was ended by "
                                f"{signal_name(-child.returncode)}; if memory is short, use --processes 1"
                            )
                        if child.returncode:
                            raise SystemExit(child.returncode)
        finally:
            # After a signal, which they may have received too: a second one changes nothing while they save.
            for child in running.values():
                child.terminate()
            for child in running.values():
                child.wait()
        return {config: json.loads(file.read_text()) for config, file in zip(schedule.configs, files, strict=True)}
