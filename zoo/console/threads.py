"""Cores, and how OpenMP's threads wait. Imports no torch: OpenMP reads its variables when torch is loaded."""

import os

WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def available_cores() -> int:
    """Number of CPU cores that this process can use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def wait_without_spinning() -> None:
    """Let threads that wait sleep, unless the user has set how they wait. Call it before torch is imported.

    By default a waiting thread occupies its core for milliseconds. On a machine that is busy with other work, the
    thread that it waits for then gets no core, and a step of a small model takes ten times as long or more.
    """
    if not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
