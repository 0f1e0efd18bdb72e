"""A rank ends with the process that started it; during training the first rank says so."""

import os
import signal
import time

import pytest

from benchmarks.commands import redirect_output
from zoo.console.signals import LOST_RANK, PARENT_VARIABLE, REPORTS, end_with_parent, needs_parent


def start(folder, variables, trains):
    """A process that waits, and its child, which ends with it and writes into `err`; returns the first one and a pipe.

    The pipe delivers a byte when the child watches its parent, and ends with the child.
    """
    reading, writing = os.pipe()
    if parent := os.fork():
        os.close(writing)
        return parent, reading
    if not (child := os.fork()):
        redirect_output(folder / "err")
        os.environ.update(variables)
        if trains:
            needs_parent.set()
        end_with_parent()
        os.write(writing, b"x")
    if child:
        os.close(writing)
    time.sleep(60)
    os._exit(0)


@pytest.mark.parametrize(
    ("variables", "trains", "expected"),
    [
        ({"LOCAL_RANK": "1"}, True, f"zoo: {LOST_RANK}\n"),
        ({PARENT_VARIABLE: REPORTS}, True, f"zoo: {LOST_RANK}\n"),
        ({"LOCAL_RANK": "2"}, True, ""),
        ({PARENT_VARIABLE: "1"}, True, ""),
        ({"LOCAL_RANK": "1"}, False, ""),
    ],
)
def test_a_rank_ends_with_the_process_that_started_it(variables, trains, expected, tmp_path):
    parent, child = start(tmp_path, variables, trains)
    assert os.read(child, 1) == b"x"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(child, 1) == b""  # it has ended
    os.close(child)
    assert (tmp_path / "err").read_text() == expected
