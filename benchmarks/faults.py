"""Faults: runs killed and signalled, files damaged and made up to harm, inputs mutated; counts of what became of them.

    python benchmarks/faults.py                          # all kinds, at most 15 minutes on two cores
    python benchmarks/faults.py --quick                  # a few cases of each kind; writes no rows
    python benchmarks/faults.py --only kills signals     # some kinds; the rows of the others stay
    python benchmarks/faults.py --only kills --index 17  # one case again, as a failure's message says

Cases run in processes with limits on time and memory, forked from one that has imported everything. Case i of a kind
depends on (seed, kind, i) alone, except for the moments of signals and kills that are measured in seconds. A failure is
printed with the command that repeats it, and makes the exit code 1. Rows are written to faults.json.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}

import lightning.pytorch.cli  # noqa: E402, F401  imported here once, for all processes
import torch  # noqa: E402
import torch.utils.tensorboard  # noqa: E402

from benchmarks.fault_kinds import KINDS  # noqa: E402
from benchmarks.fault_kinds.cases import Kind  # noqa: E402
from benchmarks.fault_kinds.processes import run_cases  # noqa: E402
from benchmarks.measure import facts, parse_arguments, store  # noqa: E402
from zoo.cli import command_line  # noqa: E402, F401
from zoo.registry import load_all  # noqa: E402

SHOWN = 5  # failures of a kind that are printed in full; a row counts all


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*KINDS], metavar="KIND", default=[*KINDS], help=", ".join(KINDS))
    parser.add_argument("--quick", action="store_true", help="a few cases of each kind; no rows are written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--index", type=int, help="only this case, of the one kind in --only; no rows are written")
    parser.add_argument("--jobs", type=int, default=2, help="processes that try cases at the same time")
    parser.add_argument("--all", action="store_true", help=f"print all failures, not only {SHOWN} of each kind")
    args = parse_arguments(parser, "faults.json")
    if args.index is not None and len(args.only) != 1:
        parser.error("--index needs --only with one kind")
    torch.set_num_threads(1)
    load_all()
    rows, about = [], facts()
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        os.environ["ZOO_CACHE"] = str(Path(scratch, "cache"))
        os.environ["HF_HUB_OFFLINE"] = "1"
        for name in args.only:
            kind = KINDS[name]
            indices = range(0, kind.cases, max(1, kind.cases // kind.quick) if args.quick else 1)
            indices = indices if args.index is None else [args.index]
            shown = sys.maxsize if args.all else SHOWN
            rows.append(about | try_kind(kind, args.seed, indices, Path(scratch, "kinds"), args.jobs, shown))
    if not args.quick and args.index is None:
        store(rows, args.output)
    print(f"{sum(row['cases'] for row in rows):,} cases, {(bad := sum(row['otherwise'] for row in rows)):,} failures")
    return int(bad > 0)


def try_kind(kind: Kind, seed: int, indices: Any, folder: Path, jobs: int, shown: int) -> dict[str, Any]:
    """Try the cases of a kind, print progress and failures, and return its row."""
    counts: Counter[str] = Counter()
    failures: list[tuple[int, str]] = []
    errors: list[float] = []
    line_end = "\r" if sys.stdout.isatty() else "\n"
    start = printed = time.monotonic()
    for index, outcome in run_cases(kind, seed, indices, folder / kind.name, jobs):
        shutil.rmtree(folder / kind.name / f"case-{index}", ignore_errors=True)
        errors += [] if outcome.error is None else [outcome.error]
        if outcome.is_wanted:
            counts[outcome.what] += 1
        else:
            failures.append((index, outcome.what))
            if len(failures) <= shown:
                print(f"{kind.name}: case {index} failed: {outcome.what}\n  again: {repeat(kind, seed, index)}")
        done = sum(counts.values()) + len(failures)
        if time.monotonic() - printed > (1 if sys.stdout.isatty() else 15):
            printed = time.monotonic()
            print(f"{kind.name}: case {done} of {len(indices)}, {len(failures)} failed", end=line_end, flush=True)
    seconds = time.monotonic() - start
    print(f"{kind.name}: {len(indices)} cases, {describe(counts)}, {len(failures)} failed, {seconds:.0f} s")
    row = {
        "benchmark": kind.name,
        "about": kind.about,
        "cases": len(indices),
        "wanted": dict(counts),
        "otherwise": len(failures),
        "failures": [{"index": index, "what": what} for index, what in sorted(failures)[:SHOWN]],
        "seed": seed,
        "seconds": round(seconds, 1),
        "threads": 1,
    }
    return row | ({"largest_error": max(errors)} if errors else {})


def repeat(kind: Kind, seed: int, index: int) -> str:
    """The command that tries one case again."""
    return f"python benchmarks/faults.py --only {kind.name} --seed {seed} --index {index}"


def describe(counts: Counter[str]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in counts.most_common()) or "none as wanted"


if __name__ == "__main__":
    sys.exit(main())
