"""kill -9 at random times and at random moments of saving; the resumed run must end with the same bits."""

import builtins
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.commands import exit_code
from benchmarks.fault_kinds.cases import Kind, Outcome, failure, wanted
from benchmarks.fault_kinds.runs import (
    Watch,
    difference,
    resume,
    resume_argv,
    saved_step,
    scenario,
    start,
    uninterrupted,
)

# Functions that saving calls: the process is killed before or after one of their calls, or while a file is written.
CALLS: dict[str, tuple[Any, str]] = {
    "torch.save": (torch, "save"),
    "os.fsync": (os, "fsync"),
    "os.replace": (os, "replace"),
    "open": (builtins, "open"),
}


def try_kill(index: int, rng: Random, folder: Path) -> Outcome:
    """Kill a run once or twice, resume it to its end, and compare it with the uninterrupted run."""
    what = scenario(index)
    expected = uninterrupted(what, folder.parent)
    seconds = float((expected / "training").read_text())
    moments = []
    for attempt in range(rng.choice([1, 1, 2])):
        (folder / "training").unlink(missing_ok=True)
        argv = [*resume_argv(what, folder), f"--checkpoint.every_n_steps={rng.choice([1, 2])}"]
        name, prepare, delay = _moment(rng, seconds)
        pid = start(argv, folder, f"killed-{attempt}", [Watch()], prepare)
        if delay is not None and wait_for_training(pid, folder / "training"):
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)
        exit_code(pid)
        moments.append(f"{name} (step {saved_step(folder)} was saved)")
    about = f"{what}, killed {', then '.join(moments)}"
    if trouble := resume(what, folder) or difference(expected, folder):
        return failure(f"{about}: {trouble}")
    return wanted("resumed")


def _moment(rng: Random, seconds: float) -> tuple[str, Callable[[], None] | None, float | None]:
    """(description, what prepares the process to kill itself, delay after the start of training): one of the two."""
    if rng.random() < 0.5:
        delay = rng.uniform(0, seconds)
        return f"{delay:.3f} s after training started", None, delay
    function, number = rng.choice([*CALLS]), rng.randrange(1, 7)
    place = rng.choice(["before", "after"] if function != "torch.save" else ["before", "within", "after"])
    share = rng.random()
    return f"{place} call {number} of {function}", lambda: _kill_self(function, number, place, share), None


def wait_for_training(pid: int, started: Path) -> bool:
    """Wait until the file `started` exists; False if the process ends before."""
    while not started.exists():
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.005)
    return True


def _kill_self(function: str, number: int, place: str, share: float) -> None:
    """Replace a function so that one of its calls that writes into the run's folder kills this process."""
    module, name = CALLS[function]
    original = getattr(module, name)
    calls = 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def replaced(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += _concerns_saving(function, args)
        if calls != number or not _concerns_saving(function, args):
            return original(*args, **options)
        if place == "before":
            die()
        if place == "within":
            args = (args[0], _HalfWritten(args[1], int(share * 100_000), die), *args[2:])
        result = original(*args, **options)
        die()
        return result

    setattr(module, name, replaced)


def _concerns_saving(function: str, args: tuple[Any, ...]) -> bool:
    """Whether a call writes a checkpoint or another file of the run: not the text cache, not an event file."""
    if function == "open":
        mode = args[1] if len(args) > 1 else "r"
        return isinstance(args[0], str | os.PathLike) and "w" in str(mode) and "run" in Path(args[0]).parts
    if function == "os.replace":
        return "run" in Path(args[1]).parts
    return True


class _HalfWritten:
    """A file that kills the process after some bytes were written to it."""

    def __init__(self, file: Any, limit: int, die: Callable[[], None]) -> None:
        if not hasattr(file, "write"):
            file = open(file, "wb")  # noqa: SIM115
        self.file, self.left, self.die = file, limit, die

    def write(self, data: Any) -> int:
        part = bytes(data)[: self.left]
        self.file.write(part)
        self.left -= len(part)
        if len(part) < len(data):
            self.file.flush()
            self.die()
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


KILLS = Kind(
    "kills",
    "kill -9 at a random time or moment of saving, once or twice, then resume: last.ckpt and best.ckpt equal those of "
    "the uninterrupted run bit by bit",
    try_kill,
    cases=100,
    quick=6,
    seconds=90,
    gigabytes=8,
    case_name=lambda index: str(scenario(index)),
)
