"""How many tasks must a transformer have seen to learn regression, rather than the tasks? Train one for each M.

    python -m zoo.icr.sweep --max_power 10 --num_steps 20000 --output_dir runs/icr-sweep      # of a size for a GPU

Members are trained side by side as one stacked model, `--stack` at a time; `--processes 4` shares the list among four
processes, each on a GPU of its own where there are any, and `--share 2/4` is one such share, for a cluster's job array.
Called again, it goes on where it was stopped or killed. Each member has a folder with checkpoints that `zoo validate`,
`zoo.icr.load_model` and `python -m zoo.icr.analysis` read; experiment_metadata.json says how far each has come.
"""

import argparse
import fcntl
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything

from zoo.callbacks.progress import Progress
from zoo.cli.trainer import ZooTrainer
from zoo.console.exit_codes import run_command
from zoo.console.messages import one_sentence
from zoo.console.table import table
from zoo.errors import UserError
from zoo.icr.model import ICRegConfig
from zoo.icr.sweep.stack import Members, StackedICR, StackedTasks, folder_of
from zoo.icr.task import Diversity, Task
from zoo.training.checkpoint_file import read_checkpoint

ENDED = ("done", "stopped early")
# How it is run, and how far: these may differ from one call to the next.
HOW = ("max_power", "tasks", "output_dir", "stack", "processes", "share", "accelerator", "compile")


class Metadata:
    """experiment_metadata.json: the settings, and each member's status. Processes take turns in changing it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "experiment_metadata.json"

    def read(self) -> dict[str, Any]:
        try:
            return json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise UserError(f"{self.path} is damaged ({error}): mend it, or give another --output_dir") from error

    @contextmanager
    def changed(self) -> Iterator[dict[str, Any]]:
        """What the file says, to be changed; it is written whole at the end."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self.read()
            yield content
            partial = self.path.with_suffix(".tmp")
            partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            os.replace(partial, self.path)

    def start(self, settings: dict[str, Any], members: list[Diversity]) -> None:
        """Write the settings, or make sure that they are those of the members that are there already."""
        with self.changed() as content:
            for name, value in content.setdefault("settings", settings).items():
                if settings.get(name) != value:
                    raise UserError(
                        f"{self.path.parent} is a sweep with {name} {value}, not {settings.get(name)}: "
                        "give the same settings, or another --output_dir"
                    )
            of = content.setdefault("members", {})
            of |= {str(M): {"status": "waiting", "step": 0} for M in members if str(M) not in of}

    def report(self, M: Diversity, status: str, **facts: Any) -> None:
        """Say what became of a member."""
        with self.changed() as content:
            content["members"][str(M)] = {"status": status, **facts, "time": time.strftime("%Y-%m-%d %H:%M:%S")}
        if status == "failed":
            print(f"zoo: M {M} failed: {facts['error']}", file=sys.stderr)


def config(args: argparse.Namespace, M: Diversity = 1) -> ICRegConfig:
    given = {field.name: getattr(args, field.name) for field in fields(ICRegConfig) if hasattr(args, field.name)}
    return ICRegConfig(**given).with_diversity(M)


def train(members: list[Diversity], step: int, args: argparse.Namespace, report: Callable[..., None]) -> None:
    """Train some members, all `step` steps old, as one stack to their end."""
    seed_everything(args.seed, verbose=False)
    eval_every = min(args.eval_every or max(1, args.num_steps // 20), args.num_steps)
    every = math.gcd(eval_every, args.checkpoint_every or eval_every)
    block = max(size for size in range(1, min(50, every) + 1) if every % size == 0)
    model = config(args)
    task = {field.name: getattr(model, field.name) for field in fields(Task)}
    data = StackedTasks(members, **task, batch_size=args.batch_size, steps_per_batch=block, n_val=args.n_val)
    stack = StackedICR(
        members, config=model, lr=args.learning_rate, warmup_steps=args.warmup_steps, grad_clip=args.grad_clip,
        compile=args.compile,
    )  # fmt: skip
    keeper = Members(
        args.output_dir, args.checkpoint_every, args.early_stopping_patience, args.early_stopping_min_delta, eval_every,
        report,
    )  # fmt: skip
    gpus = torch.cuda.device_count() if args.accelerator in ("auto", "gpu", "cuda") else 0
    trainer = ZooTrainer(
        max_steps=args.num_steps, accelerator=args.accelerator, callbacks=[keeper, Progress()],
        devices=[(args.share[0] - 1 if args.share else 0) % gpus] if gpus else 1,
        val_check_interval=eval_every // block, check_val_every_n_epoch=None, num_sanity_val_steps=0, logger=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=args.output_dir,
    )  # fmt: skip
    for M in members:
        report(M, "running", step=step)
    trainer.fit(stack, data, ckpt_path=args.output_dir / "last.ckpt" if step else None)


def sweep(members: list[Diversity], args: argparse.Namespace, metadata: Metadata) -> None:
    """Bring the members to their end; a stack that fails does not stop the next."""
    with ExitStack() as locks:
        for step, alike in waiting(members, args, metadata, locks).items():
            size = args.stack or len(alike)
            for stack in (alike[i : i + size] for i in range(0, len(alike), size)):
                try:
                    train(list(stack), step, args, metadata.report)
                except Exception as error:  # whatever it was: the others are not to suffer
                    if os.environ.get("ZOO_DEBUG"):
                        raise
                    for M in stack:
                        if metadata.read()["members"][str(M)]["status"] == "running":
                            why = f"{type(error).__name__}: {one_sentence(str(error))}"
                            metadata.report(M, "failed", step=step, error=why)


def waiting(
    members: list[Diversity], args: argparse.Namespace, metadata: Metadata, locks: ExitStack
) -> dict[int, list[Diversity]]:
    """The members that have not ended, by the step that they have reached; they are now this process's alone."""
    alike: dict[int, list[Diversity]] = {}
    for M in members:
        if metadata.read()["members"][str(M)]["status"] not in ENDED:
            last = folder_of(args.output_dir, M) / "last.ckpt"
            if not locked(last.with_name("lock"), locks):
                print(f"zoo: another process trains M {M}: it is left to that", file=sys.stderr)
                continue
            step = read_checkpoint(str(last))["global_step"] if last.exists() else 0
            if step == args.num_steps:  # it was killed after its last checkpoint
                metadata.report(M, "done", step=step)
            else:
                alike.setdefault(step, []).append(M)
    return alike


def spread(argv: list[str], processes: int) -> None:
    """Run a share in each of several processes, and wait for all."""
    me = [sys.executable, "-m", "zoo.icr.sweep.__main__", *argv, "--processes=1"]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    shares = [f"--share={i}/{processes}" for i in range(1, processes + 1)]
    children = [subprocess.Popen([*me, share], env=threads | os.environ) for share in shares]

    def end(*_: Any) -> None:
        for child in children:
            child.terminate()
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, end)
    try:
        for child in children:
            child.wait()
    finally:  # on Ctrl-C the terminal has told the children, too
        for child in children:
            child.wait()


def locked(path: Path, locks: ExitStack) -> bool:
    """Hold the file `path` until `locks` are closed; False where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_CREAT | os.O_RDWR)
    locks.callback(os.close, file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def diversity(word: str) -> Diversity:
    return "inf" if word == "inf" else int(word)


def tasks(words: str) -> list[Diversity]:
    """"2,8,inf" as a list; argparse makes a sentence of a ValueError."""
    return [diversity(word) for word in words.split(",")]


def norm(word: str) -> float | None:
    """A positive number, or "none"."""
    if word == "none":
        return None
    if not float(word) > 0:
        raise ValueError
    return float(word)


def share(words: str) -> tuple[int, int]:
    """"2/4" as (2, 4)."""
    i, n = (int(word) for word in words.split("/"))
    if not 1 <= i <= n:
        raise ValueError
    return i, n


def parse(argv: list[str]) -> argparse.Namespace:
    about, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m zoo.icr.sweep", description=about, epilog=more, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--max_power", type=int, help="M = 2, 4, ..., 2^max_power")
    which.add_argument("--tasks", type=tasks, help="or a list such as 1,8,64,inf")
    add("--output_dir", type=Path, default=Path("runs/icr-sweep"), help="the sweep's folder (%(default)s)")
    add("--num_steps", type=int, default=150_000, help="updates of each member (%(default)s)")
    add("--batch_size", type=int, default=2048, help="prompts of an update (%(default)s)")
    add("--learning_rate", type=float, default=1e-3, help="at its peak (%(default)s)")
    add("--warmup_steps", type=int, help="to the peak, from where it falls to 0 (default: a constant rate)")
    add("--grad_clip", type=norm, default=1.0, help="largest norm of a member's gradient, or none (%(default)s)")
    add("--checkpoint_every", type=int, help="steps between two checkpoints that are kept (default: the last only)")
    add("--eval_every", type=int, help="steps between two evaluations (default: a twentieth of num_steps)")
    add("--n_val", type=int, default=1024, help="prompts of each kind to evaluate on (%(default)s)")
    add("--early_stopping_patience", type=int, help="evaluations without a new best (default: never stop early)")
    add("--early_stopping_min_delta", type=float, default=1e-6, help="by which a new best is lower (%(default)s)")
    add("--seed", type=int, default=0, help="of the weights and of the training prompts (%(default)s)")
    add("--stack", type=int, default=0, help="members trained side by side, 1 for one by one (default: all)")
    add("--processes", type=int, default=1, help="share the members among so many processes (%(default)s)")
    add("--share", type=share, metavar="I/N", help="train the I-th of N shares of the list")
    add("--accelerator", default="auto", help="as in Lightning: cpu, gpu, auto")
    add("--compile", action="store_true", help="compile the network")
    for field in fields(ICRegConfig):
        if field.name not in ("M", "max_M"):
            kind: dict[str, Any] = {"type": type(field.default), "default": field.default}
            kind = {"action": argparse.BooleanOptionalAction, "default": True} if field.default is True else kind
            add(f"--{field.name}", **kind, help="as in ICRegConfig (%(default)s)")
    args = parser.parse_args(argv)
    counts = ("max_power", "num_steps", "batch_size", "checkpoint_every", "eval_every", "n_val", "processes")
    for name in (*counts, "early_stopping_patience"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.stack < 0:
        parser.error(f"--stack must be at least 1, or 0 for all, not {args.stack}")
    if not args.learning_rate > 0:
        parser.error(f"--learning_rate must be positive, not {args.learning_rate}")
    if args.processes > 1 and args.share:
        parser.error("--processes makes the shares itself: drop --share")
    return args


def main(argv: list[str]) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its chatter would drown what matters
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    args = parse(argv)
    members = list(dict.fromkeys(args.tasks or [2**power for power in range(1, args.max_power + 1)]))
    for M in members:
        config(args, M)  # a setting that makes no sense is to be known before the first stack is trained
    metadata = Metadata(args.output_dir)
    metadata.start({n: v for n, v in vars(args).items() if n not in HOW}, members)
    first, shares = args.share or (1, 1)
    mine = members[first - 1 :: shares]
    if args.processes > 1:
        spread(argv, args.processes)
    else:
        sweep(mine, args, metadata)
    reached = metadata.read()["members"]
    print(table([row(M, reached[str(M)]) for M in mine]))
    left = [f"{M} ({reached[str(M)]['status']})" for M in mine if reached[str(M)]["status"] not in ENDED]
    if left:
        raise UserError(f"{len(left)} of {len(mine)} members have not ended, M {', '.join(left)}: see {metadata.path}")


def row(M: Diversity, of: dict[str, Any]) -> dict[str, str]:
    shown = ("val_pretrain_mse", "val_true_mse", "val_true_to_ridge", "val_true_to_dmmse")
    errors = {name.removeprefix("val_"): f"{of[name]:.4f}" if name in of else "" for name in shown}
    return {"M": str(M), "status": of["status"], "steps": f"{of['step']:,}", **errors}


if __name__ == "__main__":
    sys.exit(run_command(lambda: main(sys.argv[1:])))
