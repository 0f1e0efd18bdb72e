"""Shared by the benchmarks: candidates timed alternately within one run, and the facts stored with each row."""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path
from typing import Any

import torch

from zoo.text_formats.json_text import dump_json

ROOT = Path(__file__).resolve().parents[1]


def parse_arguments(parser: argparse.ArgumentParser, file: str, passes_on: bool = False) -> argparse.Namespace:
    """The arguments of a benchmark, whose rows go to the file `args.output`.

    That is a file in runs/benchmarks/, unless --store puts the rows into results/, from which the published tables and
    figures are made, or --output names another file.

    Args:
        parser: parser with the options of the benchmark.
        file: name of the file of rows; {study} is replaced by the argument `study`.
        passes_on: whether unknown options are for `zoo fit`; they become `args.options`.
    """
    parser.allow_abbrev = False  # `facts` removes the two options by their names
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--store", action="store_true", help="put the rows into results/ (default: runs/benchmarks/)")
    group.add_argument("--output", type=Path, metavar="FILE", help="put the rows into this JSON file instead")
    args, unknown = parser.parse_known_args()
    if passes_on:
        args.options = unknown
    elif unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    for name in ("repeats", "rounds", "threads"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.output is None:
        folder = ROOT / "results" if args.store else ROOT / "runs" / "benchmarks"
        args.output = folder / file.format(**vars(args))
    if args.output.is_dir():
        parser.error(f"--output {args.output} is a folder: give a file")
    args.output = args.output.resolve()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    # Processes that measure a part print only their numbers, and checks write no rows.
    if not any(getattr(args, name, None) not in (None, False) for name in ("memory_of", "measure", "tiny", "quick")):
        print(f"rows go to {args.output}", file=sys.stderr)
    return args


def in_turn(
    candidates: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each candidate over rounds of one call each, after one unmeasured round, by `clock`."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for measured in (False, *[True] * repeats):
        for name, run in candidates.items():
            start = clock()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if measured:
                seconds[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def facts() -> dict[str, Any]:
    """Processor and GPU, versions, commit, day and command of this run.

    Paths in the command are cut to their names; it is without --store and --output, which say only where rows go.
    """
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    words = [word for word in sys.argv[1:] if word != "--store" and not word.startswith("--output=")]
    if "--output" in words:
        place = words.index("--output")
        del words[place : place + 2]
    arguments = [Path(w).name if Path(w).exists() or Path(w).is_absolute() else w for w in words]
    card = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "cpu": cpu_name(),
        **card,
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or None,
        "date": date.today().isoformat(),
        "command": " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *arguments]),
    }


def store(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the rows; a row replaces the old one of the same benchmark, and the others stay."""
    old = json.loads(path.read_text()) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump_json(list({row["benchmark"]: row for row in old + rows}.values()), indent=1) + "\n")


def measure_parts(
    names: Iterable[str],
    measure: Callable[[str], Iterable[dict[str, Any]]],
    describe: Callable[[dict[str, Any]], str],
    path: Path | None,
    **about: Any,
) -> int:
    """Measure parts of a benchmark one after the other. A part that fails loses neither its own rows nor others'.

    Args:
        names: names of the parts.
        measure: yields the rows of a part.
        describe: the line that is printed for a row.
        path: each row is stored there as soon as it is measured; None: nowhere.
        **about: fields that every row gets in addition.

    Returns:
        The exit code: 1 if a part failed.
    """
    failed = []
    for name in names:
        try:
            for row in measure(name):
                if path is not None:
                    store([row | about], path)
                print(describe(row), flush=True)
        except Exception:  # whatever it is, the other parts are measured
            traceback.print_exc()
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def process_megabytes(kind: str) -> float:
    """This process's memory now (VmRSS) or at its peak (VmHWM); getrusage would include the parent's."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith(kind))


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
