"""Time of a training step of every tiny config on a quiet machine and next to busy processes, by the threads' setting.

    python benchmarks/busy.py
    python benchmarks/busy.py --pause 60     # after every two configs, for other work on the machine
    python benchmarks/busy.py --configs "tiny/llama --data.batch_size=4"

A busy process is a Python loop that uses one core; there are none, one, or one for each core. The settings are OpenMP's
default, in which a thread that waits for another occupies its core; that of the zoo, in which it does so for a short
time and then sleeps; passive waiting, in which it sleeps at once; and one thread. Each setting
trains in a process that is measured in rounds, alternating with the others. A measurement ends after --steps steps, or
after the first step that ends more than --seconds after its start. Rows, one for each config and setting, go to
busy.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, parse_arguments, store  # noqa: E402
from zoo.cli.config_names import config_files  # noqa: E402
from zoo.console.threads import SPINS, WAIT_VARIABLES  # noqa: E402

CORES = os.cpu_count() or 1
# With a number of threads in the environment, `zoo fit` chooses none.
SETTINGS = {
    "default": {"OMP_NUM_THREADS": str(CORES)},
    "short waits": {"OMP_NUM_THREADS": str(CORES), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": SPINS},
    "passive": {"OMP_NUM_THREADS": str(CORES), "OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
}
LOADS = {"quiet": 0, "one busy": 1, "all busy": CORES}  # name -> number of busy processes
UNMEASURED = 10  # steps at the start of a run
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"  # ends with this process

# A run that trains --steps steps for each line of its standard input, and answers with the seconds of a step.
WORKER = f"""
import json, os, sys, time
from zoo.private_apis.deferred_imports import defer_imports
defer_imports()
from lightning.pytorch import Callback
from zoo.cli.command_line import ZooCLI
class Rounds(Callback):
    left, limit, done, start = {UNMEASURED}, 600.0, 0, time.perf_counter()
    def on_train_start(self, trainer, module):
        self.facts = {{"parameters": sum(p.numel() for p in module.parameters())}}
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.done += 1
        seconds = time.perf_counter() - self.start
        if self.done < self.left and seconds < self.limit:
            return
        flops = module.count(batch) * module.flops_per_item(batch)
        print(json.dumps({{"step_s": seconds / self.done, "flops": flops, **self.facts}}), flush=True)
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.left, self.limit = json.loads(line)
        self.done, self.start = 0, time.perf_counter()
ZooCLI(sys.argv[1:], callbacks=[Rounds()])
"""


class Run:
    """A training run of a config in a process, of which steps are measured.

    Args:
        config: name of the config, with options if any.
        setting: one of SETTINGS.
        folder: folder of the run's output.
    """

    def __init__(self, config: str, setting: str, folder: str) -> None:
        ours = {"MKL_NUM_THREADS", *WAIT_VARIABLES}
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        options = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"]
        options += ["--trainer.max_steps=1000000", "--trainer.val_check_interval=1000000"]
        name, *own = config.split()
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, "fit", f"--config={name}", *own, f"--output_dir={folder}", *options],
            env=environment | SETTINGS[setting] | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def answer(self) -> dict[str, float]:
        """Wait for the end of the steps in progress: seconds of a step, FLOPs of a step, parameters."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a run ended with exit code {self.process.wait()}")
        return json.loads(line)

    def measure(self, steps: int, seconds: float) -> float:
        """Train at most `steps` steps, about `seconds`, and return the mean seconds of a step."""
        assert self.process.stdin
        print(json.dumps([steps, seconds]), file=self.process.stdin, flush=True)
        return self.answer()["step_s"]

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def busy_processes(count: int):
    """A number of processes that use a core each, for the time of the context."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    time.sleep(0.2 * bool(count))  # their start
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure_config(config: str, rounds: int, steps: int, seconds: float) -> list[dict[str, Any]]:
    """A row for each setting: median seconds of a step over the rounds under each load."""
    load_before = os.getloadavg()[0]
    times: dict[tuple[str, str], list[float]] = {(s, load): [] for s in SETTINGS for load in LOADS}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runs = {setting: Run(config, setting, f"{folder}/{i}") for i, setting in enumerate(SETTINGS)}
        for run in runs.values():
            stack.callback(run.end)
        about = {setting: run.answer() for setting, run in runs.items()}
        for _ in range(rounds):
            for load, count in LOADS.items():
                with busy_processes(count):
                    for setting, run in runs.items():
                        times[setting, load].append(run.measure(steps, seconds))
    return [
        {"benchmark": f"{config}, {setting}", "config": config, "setting": setting}
        | {"parameters": about[setting]["parameters"], "flops": about[setting]["flops"]}
        | {
            load: {"step_s": statistics.median(times[setting, load]), "rounds_s": times[setting, load]}
            for load in LOADS
        }
        | {"threads": 1 if setting == "one thread" else CORES, "repeats": rounds, "steps": steps, "seconds": seconds}
        | {"load_average_before": load_before}
        | facts()
        for setting in SETTINGS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    tiny = [name for name in config_files() if name.startswith("tiny/")]
    parser.add_argument(
        "--configs", nargs="+", default=tiny, help="names of configs, each with options if any (default: all tiny/...)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each setting and load (%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="most steps of a measurement (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="after which a measurement ends (%(default)s)")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds after every two configs (%(default)s)")
    args = parse_arguments(parser, "busy.json")
    for i, config in enumerate(args.configs):
        time.sleep(args.pause * (i > 0 and i % 2 == 0))
        start = time.perf_counter()
        rows = measure_config(config, args.rounds, args.steps, args.seconds)
        store(rows, args.output)
        for row in rows:
            print(
                f"{row['benchmark']:<40}",
                *(f"{load} {1e3 * row[load]['step_s']:8.2f} ms" for load in LOADS),
                flush=True,
            )
        print(f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
