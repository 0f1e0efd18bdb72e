"""The processes (ranks) of one run end together: a failure of one ends all within seconds, with one message.

A rank that fails writes this to the key-value store of torch.distributed, which every rank can reach at MASTER_ADDR and
MASTER_PORT: torchrun keeps it, or rank 0 does once it has started. Each rank has a thread that looks into the store,
and ends the process where the main thread does not: it may wait for the failed rank inside torch, which no Python
signal handler interrupts. The first rank to fail prints its message; the others are silent.
"""

import contextlib
import functools
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.distributed import PrefixStore, Store, TCPStore
from torch.multiprocessing import ProcessExitedException

from zoo.cli.world import World
from zoo.console.exit_codes import BAD_INPUT, USAGE, UsageError, exception_chain, print_error, run_command
from zoo.console.signals import (
    LOST_RANK,
    LOST_RANK_REMEDY,
    PARENT_VARIABLE,
    REPORTS,
    Terminated,
    needs_parent,
    signal_name,
)
from zoo.errors import UserError
from zoo.private_apis.lightning_launchers import only_starts_ranks, run_ranks_through, stop_observing_ranks
from zoo.private_apis.lightning_trainer import SIGTERMException, cluster_environment

SECONDS_TO_REPORT = 4.0  # in which a failed rank tries to reach the others
SECONDS_TO_END = 2.0  # in which the main thread may end after another rank has failed, or after a signal
POLL = 0.5
# What torch says, in a RuntimeError, when the process at the other end of a connection has ended.
LOST_CONNECTION = (
    r"Connection (closed|reset) by peer|Broken pipe|Socket closed|Connection refused|NCCL.*(remote|system error)|"
    r"failed to recv, got 0 bytes|store.*(socket|connection)"
)


class Ranks:
    """This process among the ranks of its run.

    Args:
        world: the ranks; None for a single process, which learns of others later if it starts any.
    """

    def __init__(self, world: World | None = None) -> None:
        self.world = world
        self._is_reported = False
        self._is_started = False
        self._kept: TCPStore | None = None  # the store that this process keeps after a failure

    # ---- when this rank fails

    @contextlib.contextmanager
    def failures_reported(self) -> Iterator[None]:
        """Print an exception of the block, tell the other ranks, and exit. A single process raises it as it is.

        Raises:
            SystemExit: the exit code; where another rank has failed before, nothing is printed.
        """
        try:
            yield
        except ProcessExitedException as error:  # a rank of ddp_spawn or ddp_fork, which has printed its message
            if error.exit_code > 0:
                raise SystemExit(error.exit_code) from None
            raise UserError(
                f"a process of the run was ended by {signal_name(-error.exit_code)}: {LOST_RANK_REMEDY}"
            ) from error
        except BaseException as error:
            if self.world is None or is_stop(error):
                raise
            self.report(error)
            raise SystemExit(USAGE if isinstance(error, UsageError) else BAD_INPUT) from None

    def report(self, error: BaseException) -> None:
        """Print the error of this rank and tell the other ranks, unless one of them has failed before."""
        if self.world is None or self._is_reported:
            return
        self._is_reported = True
        seconds = seconds_seen = SECONDS_TO_REPORT
        if is_lost_connection(error):
            if self._other_has_failed(SECONDS_TO_END):
                return
            seconds, seconds_seen = POLL, 3 * POLL  # the store may have ended with that process, which sees nothing
            error = UserError(LOST_RANK)
        with contextlib.suppress(RuntimeError):  # the process that keeps the store has ended
            if (store := self._open(time.monotonic() + seconds)) is not None:
                name = f"{socket.gethostname()} {os.getpid()}"
                if store.compare_set("first", "", name) != name.encode():
                    self._other_has_failed(SECONDS_TO_END)  # it prints its message first: torchrun would end it
                    return
                print_error(error)
                store.set("failed", name)
                self._wait_for_others(store, seconds_seen)
                return
        print_error(error)

    def _wait_for_others(self, store: Store, seconds: float) -> None:
        """In the process that keeps the store: until the others have seen the failure, for some seconds at most."""
        assert self.world is not None
        if self.world.rank != 0 or self.world.is_kept_by_torchrun:
            return
        deadline = time.monotonic() + seconds
        while store.add("seen", 0) < self.world.size - 1 and time.monotonic() < deadline:
            time.sleep(POLL)

    def _other_has_failed(self, seconds: float) -> bool:
        """Whether another rank says within some seconds that it has failed."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(RuntimeError):
            store = self._open(deadline, keep=False)
            while store is not None and time.monotonic() < deadline:
                if store.check(["failed"]):
                    return True
                time.sleep(POLL)
        return False

    def _open(self, deadline: float, keep: bool = True) -> Store | None:
        """A connection to the store; None if there is none before the deadline.

        Args:
            deadline: as `time.monotonic` measures it.
            keep: rank 0 may host the store itself if it does not run yet.
        """
        assert self.world is not None
        host, port = self.world.host, self.world.port
        while time.monotonic() < deadline:
            if _is_reachable(host, port):
                return self._prefixed(TCPStore(host, port, wait_for_workers=False, timeout=timedelta(seconds=3)))
            if keep and self.world.rank == 0 and not self.world.is_kept_by_torchrun:
                self._kept = TCPStore(host, port, is_master=True, wait_for_workers=False)
                return self._prefixed(self._kept)
            time.sleep(POLL)
        return None

    @staticmethod
    def _prefixed(store: Store) -> Store:
        # torchrun keeps one store for all attempts of a job.
        return PrefixStore(f"zoo ranks {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)

    # ---- when another rank fails

    @contextlib.contextmanager
    def watched(self, cleanup: Callable[[], None] = lambda: None) -> Iterator[None]:
        """During the block, end this process if another rank has failed and the main thread waits for it.

        Args:
            cleanup: called before the process is ended so.
        """
        if self.world is None:
            yield
            return
        ended = threading.Event()
        received, sender = socket.socketpair()
        received.setblocking(False)
        sender.setblocking(False)
        # The interpreter writes each signal's number there, also while the main thread is inside torch. A forked
        # process must not write there: its signals are its own.
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_write_no_signals)
        arguments = (ended, received, cleanup)
        thread = threading.Thread(target=self._watch, args=arguments, name="other ranks", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            signal.set_wakeup_fd(before)
            thread.join(5 * SECONDS_TO_END)  # a thread inside torch at the interpreter's end aborts the process
            sender.close()

    def started(self) -> None:
        """Called when all ranks are connected: from now on signals wait for the end of a step."""
        self._is_started = True

    def _watch(self, ended: threading.Event, received: socket.socket, cleanup: Callable[[], None]) -> None:
        def end_unless_ended(code: int) -> None:
            if not ended.wait(SECONDS_TO_END):
                cleanup()
                os._exit(code)

        store: Store | None = None
        with received:
            while not ended.wait(POLL):
                with contextlib.suppress(BlockingIOError):
                    signums = [number for number in received.recv(64) if number in (signal.SIGINT, signal.SIGTERM)]
                    if signums and not self._is_started:
                        end_unless_ended(128 + signums[0])
                        return
                try:
                    store = store or self._open(time.monotonic() + POLL / 2, keep=False)
                    if store is None or not store.check(["failed"]):
                        continue
                    needs_parent.clear()  # the failed rank prints the message
                    store.add("seen", 1)
                except RuntimeError:  # the process that keeps the store has ended
                    store = None
                    continue
                end_unless_ended(BAD_INPUT)
                return


class FailureReport(Callback):
    """Reports an exception to the other ranks immediately, before anything waits for them.

    Args:
        ranks: those of the run.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.ranks.started()
        needs_parent.set()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        needs_parent.clear()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        stop_observing_ranks(trainer)
        if not is_stop(exception):
            self.ranks.report(exception)
        needs_parent.clear()


def connect(ranks: Ranks, trainer: Any, prepare: Callable[[], None]) -> None:
    """Tell `ranks` what the trainer knows about them, before it starts a stage.

    Args:
        ranks: those of the run.
        trainer: trainer of this process.
        prepare: called first in every process of ddp_spawn or ddp_fork.

    Raises:
        UserError: torchrun or SLURM has started another number of processes than the Trainer is set up for, or nothing
            has started processes on several nodes.
    """
    world = World.of(trainer)
    is_alone = ranks.world is None and isinstance(cluster_environment(trainer), LightningEnvironment)
    if trainer.num_nodes > 1 and is_alone and not {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys():
        # It would wait for the other nodes, for half an hour.
        raise UserError(
            f"--trainer.num_nodes {trainer.num_nodes}: start the command on every node with torchrun or srun, or drop "
            "the option"
        )
    size = 1 if world is None else world.size
    # Under torchrun the Trainer's world_size is the number of processes that were started, for strategies of several.
    size_of_options = 1 if world is None else trainer.num_devices * trainer.num_nodes
    if ranks.world is not None and not ranks.world.size == size == size_of_options:
        raise UserError(
            f"{ranks.world.size} processes were started, and the Trainer is set up for {size_of_options} "
            f"({trainer.num_devices} devices on {trainer.num_nodes} nodes): set --trainer.strategy ddp, "
            "--trainer.devices to the processes of one node and --trainer.num_nodes to the number of nodes"
        )
    if only_starts_ranks(trainer):
        run_ranks_through(trainer, functools.partial(run_rank, world, prepare))
    else:
        ranks.world = world


def run_rank(
    world: World | None, prepare: Callable[[], None], run: Callable[..., Any], rank: int, *arguments: Any
) -> None:
    """Run a rank of ddp_spawn or ddp_fork like a command: one sentence for an error of the user, and its exit code.

    Args:
        world: the ranks of the run; None if there is one only.
        prepare: called first.
        run: what Lightning would call with `rank` and `arguments`.
        rank: rank of this process.
        arguments: arguments of `run`; the first is the Trainer.
    """
    ranks, trainer = Ranks(None if world is None else world._replace(rank=rank)), arguments[0]
    os.environ[PARENT_VARIABLE] = REPORTS if rank == 0 else "1"
    for callback in trainer.callbacks:
        if isinstance(callback, FailureReport):
            callback.ranks = ranks

    def action() -> None:
        prepare()
        with ranks.watched(), ranks.failures_reported():
            try:
                run(rank, *arguments)
            except BaseException as error:
                # In such a process Lightning does not tell the callbacks.
                for callback in trainer.callbacks:
                    callback.on_exception(trainer, trainer.lightning_module, error)
                raise

    if code := run_command(action):
        sys.stderr.flush()
        sys.exit(code)


def is_stop(error: BaseException) -> bool:
    """Whether a signal led to the exception, or it is an exit without an error."""
    stops = (KeyboardInterrupt, Terminated, SIGTERMException)
    is_exit = isinstance(error, SystemExit) and not isinstance(error, UsageError)
    return is_exit or any(isinstance(one, stops) for one in exception_chain(error))


def is_lost_connection(error: BaseException) -> bool:
    """Whether torch reports that another rank has closed its connection."""
    return isinstance(error, RuntimeError) and re.search(LOST_CONNECTION, str(error), re.IGNORECASE) is not None


def _write_no_signals() -> None:
    with contextlib.suppress(ValueError):  # not in the main thread
        signal.set_wakeup_fd(-1)


def _is_reachable(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True
