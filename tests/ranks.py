"""Helper of tests with several ranks: forked processes with the environment variables that torchrun sets.

Nothing is imported anew, so a test takes a second or two; no launcher ends the ranks, as on several nodes.
"""

import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from typing import NamedTuple

import torch

from zoo.__main__ import main


class Ended(NamedTuple):
    """How a rank has ended."""

    code: int  # minus the number of the signal that ended it
    out: str
    err: list[str]  # the lines that are not empty
    after_first: float  # seconds after the end of the first rank


def free_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


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
        if not (pid := os.fork()):
            _run(folder, rank, argv, {name: str(value) for name, value in variables.items()}, prepare)
        pids.append(pid)
    codes, times = wait_for(pids, limit)
    first = min(times)
    texts = [[(folder / f"rank{rank}.{kind}").read_text() for kind in ("out", "err")] for rank in range(size)]
    return [
        Ended(codes[rank], out, [line for line in err.splitlines() if line.strip()], times[rank] - first)
        for rank, (out, err) in enumerate(texts)
    ]


def _run(folder, rank, argv, variables, prepare):
    code = 1
    try:
        for number, kind in ((1, "out"), (2, "err")):
            file = os.open(folder / f"rank{rank}.{kind}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, number)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        os.environ.update(variables)
        torch.set_num_threads(1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        prepare(rank)
        code = main([str(word) for word in argv])
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
