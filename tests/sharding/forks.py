"""Ranks as forked processes of this machine, started as `torchrun` would start them, without new imports."""

import os
import sys
import traceback
from collections.abc import Callable

from tests.ranks import free_port, wait_for


def run_ranks(action: Callable[[], object], ranks: int = 2, timeout: float = 120) -> list[int]:
    """Run `action` in `ranks` processes and return their exit codes: what it returns, or 1 if it raises.

    Args:
        action: returns an exit code, or None for 0.
        ranks: number of processes.
        timeout: seconds until the processes that are left are killed.
    """
    port = free_port()
    return wait_for([_fork(action, rank, ranks, port) for rank in range(ranks)], timeout)[0]


def _fork(action: Callable[[], object], rank: int, ranks: int, port: int) -> int:
    """Start one rank; returns its process id."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.environ |= {
            "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
        code = int(action() or 0)  # type: ignore[call-overload]
    except BaseException:
        traceback.print_exc()
    finally:  # never returns into the test
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
