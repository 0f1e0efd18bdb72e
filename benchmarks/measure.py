"""Shared by the benchmarks: candidates timed alternately within one run, and the facts stored with each row."""

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
    """Processor and GPU, versions, commit, day and command of this run; paths in the command are cut to their names."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    arguments = [Path(w).name if Path(w).exists() or Path(w).is_absolute() else w for w in sys.argv[1:]]
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
        names: of the parts.
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
