"""Training of the members of a sweep, stack by stack."""

import argparse
import math
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields

import torch
from lightning.pytorch import Trainer, seed_everything

from zoo.callbacks.progress import Progress
from zoo.console.messages import one_sentence
from zoo.errors import UserError
from zoo.files.checkpoints import read_checkpoint
from zoo.files.locks import owned_lock
from zoo.icr.sweep.member_tracking import MemberTracking
from zoo.icr.sweep.metadata import ENDED, Metadata, member_folder
from zoo.icr.sweep.options import ArrayShare, model_config
from zoo.icr.sweep.stacked_data import StackedTasks
from zoo.icr.sweep.stacked_model import StackedICR
from zoo.icr.task import Diversity, Task

LONGEST_LIST = 5  # members whose names the progress line has


def train_members(members: list[Diversity], args: argparse.Namespace, metadata: Metadata) -> None:
    """Train the members to their end. A stack that fails does not stop the next one."""
    with ExitStack() as locks:
        unfinished, begun = unfinished_members(members, args, metadata, locks), 0
        n_unfinished = sum(map(len, unfinished.values()))
        for step, together in unfinished.items():
            # Members at the same step train together, at most `stack` at a time.
            size = args.stack or len(together)
            for stack in (together[i : i + size] for i in range(0, len(together), size)):
                label = stack_label(stack, begun, n_unfinished)
                begun += len(stack)
                try:
                    train_stack(stack, step, args, metadata.report, label)
                except Exception as error:
                    # Unfinished members of a failed stack are marked as failed.
                    for M in stack:
                        if metadata.status(M) == "running":
                            reason = f"{type(error).__name__}: {one_sentence(str(error))}"
                            metadata.report(M, "failed", error=reason)
                    if os.environ.get("ZOO_DEBUG"):
                        raise


def build_stack(members: list[Diversity], args: argparse.Namespace) -> tuple[StackedICR, StackedTasks]:
    """The stacked model of some members, and its data. Raises UserError if a setting is outside its range."""
    config = model_config(args)
    task = {field.name: getattr(config, field.name) for field in fields(Task)}
    data = StackedTasks(members, **task, batch_size=args.batch_size, n_val=args.n_val)
    stack = StackedICR(
        members, config=config, lr=args.learning_rate, warmup_steps=args.warmup_steps, grad_clip=args.grad_clip,
        compile=args.compile,
    )  # fmt: skip
    return stack, data


def stack_label(members: list[Diversity], before: int, total: int) -> str:
    """The name of some members in the progress line: "members 3 to 5 of 10, M 8, 16, 32".

    Args:
        members: that are trained together.
        before: number of members that this process has trained before them.
        total: number of all members that this process trains.
    """
    names = [str(M) for M in members]
    shown = names if len(names) <= LONGEST_LIST else [*names[: LONGEST_LIST - 2], "...", names[-1]]
    first, last = before + 1, before + len(members)
    return f"{f'member {first}' if first == last else f'members {first} to {last}'} of {total}, M {', '.join(shown)}"


def train_stack(
    members: list[Diversity], step: int, args: argparse.Namespace, report: Callable[..., None], label: str = ""
) -> None:
    """Train some members, all of which have finished `step` steps, as one stacked model to their end.

    Args:
        members: to be trained.
        step: number of steps that they have finished.
        args: options of the sweep.
        report: called as report(M, status, **values) when a member's status changes.
        label: name of the members in the progress line.
    """
    seed_everything(args.seed, verbose=False)
    # By default there are 20 evaluations.
    eval_every = min(args.eval_every or max(1, args.num_steps // 20), args.num_steps)
    # Losses are checked at every evaluation and checkpoint, and at least every 50 steps.
    period = math.gcd(eval_every, args.checkpoint_every or eval_every)
    check_every = max(size for size in range(1, min(50, period) + 1) if period % size == 0)
    # Data, model, callback and trainer of the stack.
    stack, data = build_stack(members, args)
    tracking = MemberTracking(
        args.output_dir, args.checkpoint_every, args.early_stopping_patience, args.early_stopping_min_delta, eval_every,
        check_every, report,
    )  # fmt: skip
    gpus = torch.cuda.device_count() if args.accelerator in ("auto", "gpu", "cuda") else 0
    # Validation every eval_every steps; a share of a sweep on several GPUs uses the GPU of its number.
    trainer = Trainer(
        max_steps=args.num_steps, accelerator=args.accelerator, callbacks=[tracking, Progress(label)],
        devices=[(args.share.number - 1 if args.share else 0) % gpus] if gpus else 1,
        val_check_interval=eval_every, check_val_every_n_epoch=None, num_sanity_val_steps=0, logger=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=args.output_dir,
    )  # fmt: skip
    # Train from the beginning, or from the members' checkpoints of this step.
    for M in members:
        report(M, "running", step=step)
    trainer.fit(stack, data, ckpt_path=args.output_dir / "last.ckpt" if step else None)


def unfinished_members(
    members: list[Diversity], args: argparse.Namespace, metadata: Metadata, locks: ExitStack
) -> dict[int, list[Diversity]]:
    """The unfinished members, grouped by the step that they have reached.

    This process holds a lock on each of them until `locks` are closed; members locked by others are left out. A task of
    a job array needs no locks: SLURM runs each task once at a time.
    """
    is_of_array = isinstance(args.share, ArrayShare)
    by_step: dict[int, list[Diversity]] = {}
    for M in members:
        if metadata.status(M) not in ENDED:
            # Another process may train this member at the moment.
            last = member_folder(args.output_dir, M) / "last.ckpt"
            last.parent.mkdir(parents=True, exist_ok=True)
            if not is_of_array:
                try:
                    locks.enter_context(owned_lock(last.with_name("lock"), f"another process trains M {M}"))
                except UserError as error:
                    print(f"zoo: {error}: left out here", file=sys.stderr)
                    continue
            # The member continues after the step of its last checkpoint.
            step = read_checkpoint(last, required=("global_step",))["global_step"] if last.exists() else 0
            if step == args.num_steps:  # it was killed after its last checkpoint
                metadata.report(M, "done", step=step)
                continue
            if metadata.status(M) == "running":  # no process trains it: it was killed
                metadata.report(M, "waiting", step=step)
            by_step.setdefault(step, []).append(M)
    return by_step
