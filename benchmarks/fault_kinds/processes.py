"""Cases tried in forked processes with limits on time and memory: a crash or a hang ends one case only."""

import multiprocessing
import os
import resource
import signal
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path

from benchmarks.commands import redirect_output
from benchmarks.fault_kinds.cases import Kind, Outcome, failure

CASES_PER_PROCESS = 200  # then a new process follows, so that leaks do not add up to the memory limit


class Worker:
    """A forked process that tries one case at a time."""

    def __init__(self, kind: Kind, seed: int, folder: Path) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, child = context.Pipe()
        self.process = context.Process(target=_work, args=(kind, seed, folder, child))
        self.process.start()
        child.close()
        self.kind, self.index, self.deadline, self.done = kind, -1, 0.0, 0

    def start(self, index: int, seconds: float) -> None:
        self.index, self.deadline = index, time.monotonic() + seconds
        self.connection.send(index)

    def result(self) -> Outcome:
        """The outcome of the case; the way in which the process ended if it ended instead of answering."""
        try:
            self.done += 1
            return self.connection.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            return failure(f"{self.name()}the process ended with {how}")

    def name(self) -> str:
        """The case's name, if it has one, for the beginning of a message."""
        name = self.kind.case_name(self.index)
        return f"{name}: " if name else ""

    def stop(self) -> None:
        """End the process and every process that it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.join()
        self.connection.close()


def run_cases(kind: Kind, seed: int, indices: Iterable[int], folder: Path, jobs: int) -> Iterator[tuple[int, Outcome]]:
    """Try the cases `indices`, `jobs` at a time, and yield (index, outcome) in the order in which they end."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting, workers = iter(indices), list[Worker]()
    try:
        while True:
            # Give every free process a case; replace those that died or are old.
            while len(workers) < jobs and (index := next(waiting, None)) is not None:
                workers.append(Worker(kind, seed, folder))
                workers[-1].start(index, kind.seconds)
            if not workers:
                return
            limit = max(0.0, min(worker.deadline for worker in workers) - time.monotonic())
            ready = wait([worker.connection for worker in workers], limit)
            for worker in list(workers):
                if worker.connection in ready:
                    outcome = worker.result()
                elif worker.deadline <= time.monotonic():
                    outcome = failure(f"{worker.name()}it took longer than {kind.seconds:g} s")
                    worker.stop()
                else:
                    continue
                yield worker.index, outcome
                is_usable = worker.process.is_alive() and worker.done < CASES_PER_PROCESS
                index = next(waiting, None) if is_usable else None
                if index is None:
                    worker.stop()
                    workers.remove(worker)
                else:
                    worker.start(index, kind.seconds)
    finally:
        for worker in workers:
            worker.stop()


def _work(kind: Kind, seed: int, folder: Path, connection: Connection) -> None:
    """Answer case numbers with outcomes until the connection closes."""
    os.setsid()  # a group of processes, so that all of them can be ended
    redirect_output(os.devnull)
    limit_memory(kind.gigabytes)
    with suppress(EOFError):
        while True:
            index = connection.recv()
            own = folder / f"case-{index}"
            own.mkdir(parents=True, exist_ok=True)
            connection.send(try_case(kind, seed, index, own))


def try_case(kind: Kind, seed: int, index: int, own_folder: Path) -> Outcome:
    """The outcome of a case; an exception of the harness itself is a failure too, with its place."""
    try:
        return kind.run(index, kind.random(seed, index), own_folder)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return failure(f"{type(error).__name__} in {Path(place.filename).name}, line {place.lineno}: {error}"[:300])


def limit_memory(gigabytes: float) -> None:
    """Limit the address space of this process to what it has now and `gigabytes` more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
