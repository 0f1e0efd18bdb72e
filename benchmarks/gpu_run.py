"""Everything that needs a GPU in one command of limited time: the tests with the mark `gpu`, then benchmark parts.

    python benchmarks/gpu_run.py --output FOLDER [--minutes 9.5] [--only tests icr llama revdeq regress_lm]

FOLDER receives a log of each part as it runs, `failed_tests.txt` with the tests that failed or did not end,
`summary.txt`, and the files of results/ that a part has changed, after each part. A part that fails or exceeds its
limit of time ends alone; rows that it has measured stay. regress_lm is left out where upstream's package is not
installed and --upstream does not name its checkout.
"""

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
MARK = "pytest.mark.gpu"


class Part(NamedTuple):
    """A command, and the seconds after which it is stopped; on an H200 it took about two thirds of them."""

    command: list[str]
    seconds: float


def parts(upstream: Path | None) -> dict[str, Part]:
    """All parts, in the order in which they run."""
    files = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests").rglob("test_*.py")) if MARK in _text(path)]
    # Several processes, because compilation takes most of the time. pytest-benchmark warns of them, if it is installed.
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    pytest = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    commands = {"icr": "icr.py", "llama": "llama.py", "revdeq": "revdeq.py", "regress_lm": "regress_lm.py"}
    scripts = {
        name: [sys.executable, str(ROOT / "benchmarks" / script), "--only", "gpu", "--store"]
        for name, script in commands.items()
    }
    if upstream is not None:
        scripts["regress_lm"] += ["--upstream", str(upstream)]
    elif importlib.util.find_spec("regress_lm") is None:
        print("regress_lm: left out, because upstream's package is not installed; name its checkout with --upstream")
        del scripts["regress_lm"]
    seconds = {"icr": 120, "llama": 330, "revdeq": 210, "regress_lm": 90}
    all_parts = {name: Part(command, seconds[name]) for name, command in scripts.items()}
    return {"tests": Part([*pytest, *workers, *files], 150)} | all_parts


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def run(part: Part, log: Path, seconds: float) -> str:
    """Run a part with its output in a file; how it ended, after at most that many seconds."""
    start = time.monotonic()
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    with log.open("w") as file:
        process = subprocess.Popen(
            part.command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # the part with all its processes
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return f"{'done' if code == 0 else f'failed with exit code {code}'} after {time.monotonic() - start:.0f} s"


def unsuccessful_tests(log: str) -> list[str]:
    """The tests that failed or did not end, from the output of `pytest -v`, with or without pytest-xdist."""
    name, results = r"(tests/\S+?\.py(?:::\S+)?)", "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
    found = [(m[2], m[1]) for m in re.finditer(rf"^(?:\[gw\d+\] \[ *\d+%\] )?({results}) {name}", log, re.M)]
    found += re.findall(rf"^{name} ({results})", log, re.M)
    ended = dict(found)
    failed = [f"{result} {test}" for test, result in ended.items() if result in ("FAILED", "ERROR")]
    started = dict.fromkeys(re.findall(rf"^{name} *$", log, re.M))
    return failed + [f"NOT ENDED {test}" for test in started if test not in ended]


def copy_changed(before: dict[Path, int], folder: Path) -> None:
    """Copy the files of results/ that have changed since their times `before`."""
    for path, changed in times().items():
        if before.get(path) != changed:
            shutil.copy(path, folder / path.name)


def times() -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in RESULTS.glob("*.json")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu", help="folder (default: runs/gpu)")
    parser.add_argument("--minutes", type=float, default=9.5, help="limit of the whole run (default: 9.5)")
    parser.add_argument("--only", nargs="+", help="parts to run, in the order tests icr llama revdeq regress_lm")
    parser.add_argument("--upstream", type=Path, help="checkout of google-deepmind/regress-lm")
    args = parser.parse_args()
    chosen = parts(args.upstream)
    if unknown := set(args.only or ()) - chosen.keys():
        parser.error(f"there is no part {', '.join(sorted(unknown))}: choose among {', '.join(chosen)}")
    args.output.mkdir(parents=True, exist_ok=True)
    end, before, summary = time.monotonic() + 60 * args.minutes, times(), []
    for name in [name for name in chosen if not args.only or name in args.only]:
        log, left = args.output / f"{name}.log", end - time.monotonic()
        outcome = run(chosen[name], log, min(chosen[name].seconds, left)) if left > 0 else "left out, no time"
        if name == "tests" and log.exists():
            failed = unsuccessful_tests(_text(log))
            (args.output / "failed_tests.txt").write_text("".join(f"{line}\n" for line in failed))
            outcome += f", {len(failed)} tests failed or did not end"
        copy_changed(before, args.output)
        summary.append(f"{name}: {outcome}")
        print(summary[-1], flush=True)
        (args.output / "summary.txt").write_text("".join(f"{line}\n" for line in summary))
    sys.exit(0 if all(": done" in line for line in summary) else 1)


if __name__ == "__main__":
    main()
