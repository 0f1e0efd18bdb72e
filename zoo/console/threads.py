"""Cores, and how OpenMP's threads wait. Imports no torch: OpenMP reads its variables when torch is loaded."""

import os
import re

WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPINS = "2000"  # about 0.1 ms on a current server CPU; measured in docs/scaling.md, "Busy machines"


def available_cores() -> int:
    """Number of CPU cores that this process can use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_number_of_threads(value: str) -> bool:
    """Whether OpenMP uses this value of OMP_NUM_THREADS: a positive whole number, or a list for nested threads."""
    return re.fullmatch(r"\s*\+?0*[1-9]\d{0,8}\s*(,\s*\d+\s*)*", value, re.ASCII) is not None


def environment_with_threads(default: int) -> dict[str, str]:
    """The environment for a new process, with a number of threads unless OMP_NUM_THREADS holds one."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return {**os.environ, "OMP_NUM_THREADS": given if is_number_of_threads(given) else str(default)}


def wait_briefly() -> None:
    """Let threads that wait for others sleep after a short time, unless the user has set how they wait.

    Call it before torch is imported. By default a waiting thread of GNU's OpenMP occupies its core for milliseconds. On
    a machine that is busy with other work, the thread that it waits for then gets no core, and a step of a small model
    takes several times as long. A thread that sleeps at once is woken too late on a quiet machine. Other libraries of
    OpenMP read the policy alone.
    """
    if not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": SPINS}
