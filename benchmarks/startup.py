"""Time of commands that train nothing, compared with the import of LightningCLI alone; processes, in turn.

`startup_parts.py` measures the start of `zoo fit`.

Usage:

    python benchmarks/startup.py
    python benchmarks/startup.py --cpu_time     # on a machine that is busy with other work

Rows go to startup.json.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import facts, in_turn, parse_arguments  # noqa: E402
from zoo.text_formats.json_text import dump_json  # noqa: E402

PEER = "python -c 'import lightning.pytorch.cli'"
COMMANDS = {
    PEER: ["-c", "import lightning.pytorch.cli"],
    "python -c 'import zoo'": ["-c", "import zoo"],
    "zoo --help": ["-m", "zoo", "--help"],
    "zoo list": ["-m", "zoo", "list"],
}


def cpu_seconds() -> float:
    """CPU time of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cpu_time", action="store_true", help="count CPU seconds instead of seconds of the clock")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds (%(default)s)")
    args = parse_arguments(parser, "startup.json")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def process(arguments: list[str]) -> None:
        subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)

    clock = cpu_seconds if args.cpu_time else time.perf_counter
    seconds = in_turn({name: lambda w=words: process(w) for name, words in COMMANDS.items()}, args.repeats, clock)
    unit = "CPU s" if args.cpu_time else "s"
    rows = [
        {"benchmark": name, "ours": value, "peer": seconds[PEER], "ratio": value / seconds[PEER], "unit": unit}
        | {"repeats": args.repeats, "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))}
        | facts()
        for name, value in seconds.items()
        if name != PEER
    ]
    args.output.write_text(dump_json(rows, indent=1) + "\n")
    for row in rows:
        print(f"{row['benchmark']:<24} {row['ours']:.3f} {unit}, {row['ratio']:.3f} of {PEER}")


if __name__ == "__main__":
    main()
