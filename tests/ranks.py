"""Helper of tests with several ranks: forked processes with the environment variables that torchrun sets.

Nothing is imported anew, so a test takes a second or two; no launcher ends the ranks, as on several nodes.
"""

import os
import signal
import time
from functools import partial
from typing import NamedTuple

import torch

from benchmarks.commands import fork_command, free_port


class Ended(NamedTuple):
    """How a rank has ended."""

    code: int  # minus the number of the signal that ended it
    out: str
    err: list[str]  # the lines that are not empty, without the notice about a long warm-up
    after_first: float  # seconds after the end of the first rank


def wait_for(pids, limit):
    """The exit codes of processes, and the times of their ends; those that go on for `limit` seconds are killed."""
    codes, times, deadline = {}, {}, time.monotonic() + limit
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (status := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid], times[pid] = os.waitstatus_to_exitcode(status[1]), time.monotonic()
        if time.monotonic() > deadline:
            for pid in pids:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[pid] for pid in pids], [times[pid] for pid in pids]


def run_ranks(folder, *commands, prepare=lambda rank: None, environment=None, limit=120.0):
    """Run a command per rank until all have ended; those that go on for `limit` seconds are killed.

    Args:
        folder: for their output.
        commands: the words after `zoo`, for each rank. A single one is started without the variables of torchrun.
        prepare: called with the rank in its process.
        environment: further variables.
        limit: seconds.

    Returns:
        An `Ended` for each rank.
    """
    size, port = len(commands), free_port()
    pids = []
    for rank, argv in enumerate(commands):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "GROUP_RANK": 0,
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test",
                     "OMP_NUM_THREADS": 1, "ZOO_END_WITH_PARENT": 1}  # fmt: skip
        variables = (variables if size > 1 else {"OMP_NUM_THREADS": 1}) | (environment or {})
        words = {name: str(value) for name, value in variables.items()}
        pids.append(fork_command(argv, folder, f"rank{rank}", partial(_prepare, rank, words, prepare)))
    codes, times = wait_for(pids, limit)
    first = min(times)
    texts = [[(folder / f"rank{rank}.{kind}").read_text() for kind in ("out", "err")] for rank in range(size)]
    return [
        Ended(
            codes[rank],
            out,
            [line for line in err.splitlines() if line.strip() and "reach its peak" not in line],
            times[rank] - first,
        )
        for rank, (out, err) in enumerate(texts)
    ]


def _prepare(rank, variables, prepare):
    os.environ.update(variables)
    torch.set_num_threads(1)
    prepare(rank)
