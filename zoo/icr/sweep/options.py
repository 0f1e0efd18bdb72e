"""Command-line options of the sweep."""

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from zoo.console.plain_parser import PlainParser
from zoo.errors import UserError
from zoo.icr.model import ICRegConfig
from zoo.icr.task import Diversity

# Options that may differ between two calls for the same folder; all others are settings of the sweep.
RUNTIME_ARGS = (
    "max_power", "tasks", "collect", "output_dir", "stack", "processes", "share", "accelerator", "compile",
)  # fmt: skip

ARRAY = "SLURM_ARRAY_TASK_"  # variables of a task of a job array: ID, and MIN, MAX, STEP and COUNT of the array

ABOUT = "Train one ICR transformer for each number M of tasks, to see from which M on it learns regression itself."
DETAILS = """\
    python -m zoo.icr.sweep --max_power 10 --num_steps 20000 --output_dir runs/icr-sweep      # for a GPU

Members are trained as one stacked model, --stack of them at a time. --processes 4 divides the list among four
processes, each on its own GPU if there are several; --share array is the part of one task of a SLURM job array, whose
first submission has the tasks 1 to N, and --share 2/4 the second of four parts on other clusters; after them, --collect
prints the results of all members. A second call with the same settings resumes. Each member has a folder with
checkpoints that `zoo validate`, `zoo.icr.load_model` and `python -m zoo.icr.analysis` read; experiment_metadata.json
has the progress of each.
"""


class Share(NamedTuple):
    """A part of the members: those at the places number, number + total, number + 2 total, ... of the list, from 1."""

    number: int
    total: int


class ArrayShare(NamedTuple):
    """The part of one task of a SLURM job array, which runs each task once at a time.

    The number of parts is that of the array that was submitted first: tasks submitted again are an array of fewer.
    """

    number: int
    total: int | None  # as the option gives it
    submitted: int | None  # number of tasks of this submission, None where they are not 1, 2, ..., N

    def of(self, recorded: int | None, path: Path) -> Share:
        """The share of the task.

        Args:
            recorded: number of shares of the sweep so far, if it has been run as an array.
            path: path of the file that has this number, for messages.

        Raises:
            UserError: the number of shares is not known, is another one, or the task's number is not in it.
        """
        if recorded and self.total and recorded != self.total:
            raise UserError(
                f"the sweep is divided among {recorded} tasks of an array ({path}), not {self.total}: give "
                f"--share array/{recorded}; to divide it in another way, remove array_tasks from the file when no task "
                "runs"
            )
        total = self.total or recorded or self.submitted
        if total is None:
            raise UserError(
                "--share array: this array is not numbered 1, 2, ..., N, and the sweep has not been run as one before: "
                "submit --array=1-N, or write --share array/N, where N is the number of tasks of all submissions"
            )
        if not 1 <= self.number <= total:
            raise UserError(
                f"--share array: task {self.number} is none of the {total} shares of the sweep: "
                f"submit --array=1-{total}"
            )
        return Share(self.number, total)


def parse(argv: list[str]) -> argparse.Namespace:
    """The options; exits with code 2 and a message for one that is not valid."""
    parser = PlainParser(
        prog="python -m zoo.icr.sweep", description=ABOUT, epilog=DETAILS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--max_power", type=int, help="train M = 2, 4, ..., 2^max_power; at least 1")
    which.add_argument("--tasks", type=diversities, help="train the M of a list such as 1,8,64,inf")
    which.add_argument(
        "--collect",
        action="store_true",
        help="train nothing: print the status and the errors of all members in --output_dir; exit code 1 where one has "
        "not ended",
    )
    add("--output_dir", type=Path, default=Path("runs/icr-sweep"), help="folder of the sweep (%(default)s)")
    add("--num_steps", type=int, default=150_000, help="optimizer steps of each member (%(default)s)")
    add("--batch_size", type=int, default=2048, help="prompts of a step (%(default)s)")
    add("--learning_rate", type=float, default=1e-3, help="peak learning rate (%(default)s)")
    add("--warmup_steps", type=int, help="steps of warm-up, after which the rate falls to 0 (default: constant rate)")
    add("--grad_clip", type=norm, default=1.0, help="largest norm of a member's gradient, or none (%(default)s)")
    add("--checkpoint_every", type=int, help="steps between two checkpoints that are kept (default: only the last)")
    add("--eval_every", type=int, help="steps between two evaluations (default: num_steps / 20)")
    add("--n_val", type=int, default=1024, help="evaluation prompts of each kind (%(default)s)")
    add("--early_stopping_patience", type=int, help="evaluations without a new best before a stop (default: off)")
    add("--early_stopping_min_delta", type=float, default=1e-6, help="decrease that is a new best (%(default)s)")
    add("--seed", type=int, default=0, help="seed of the weights and of the training prompts (%(default)s)")
    add("--stack", type=int, default=0, help="members trained together, or 0 for all (%(default)s)")
    add("--processes", type=int, default=1, help="number of processes that share the members (%(default)s)")
    add(
        "--share",
        type=share,
        metavar="I/N",
        help="train only the I-th of N parts of the list; or array, or array/N: the part of this task of a SLURM job "
        "array. N is stored at the first submission, so that tasks may be submitted again with --array=3,5",
    )
    add("--accelerator", default="auto", help="device type as in Lightning: cpu, gpu or auto (%(default)s)")
    add("--compile", action="store_true", help="train through torch.compile")
    for field in fields(ICRegConfig):
        if field.name not in ("M", "max_M"):
            kind: dict[str, Any] = {"type": type(field.default), "default": field.default}
            kind = {"action": argparse.BooleanOptionalAction, "default": True} if field.default is True else kind
            add(f"--{field.name}", **kind, help="as in zoo.icr.ICRegConfig (%(default)s)")
    args = parser.parse_args(argv)
    check(parser, args)
    return args


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with code 2 where an option is outside its range, or does nothing."""
    changed = [name for name, value in vars(args).items() if value != parser.get_default(name)]
    unused = [f"--{name}" for name in changed if name not in ("collect", "output_dir")]
    if args.collect and unused:
        parser.error(f"--collect prints the results of all members in --output_dir: drop {', '.join(unused)}")
    counts = ("max_power", "num_steps", "batch_size", "checkpoint_every", "eval_every", "n_val", "processes")
    for name in (*counts, "early_stopping_patience"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.stack < 0:
        parser.error(f"--stack must be at least 1, or 0 for all, not {args.stack}")
    if not args.learning_rate > 0:
        parser.error(f"--learning_rate must be positive, not {args.learning_rate}")
    if not args.early_stopping_min_delta >= 0:
        parser.error(f"--early_stopping_min_delta must be at least 0, not {args.early_stopping_min_delta}")
    if args.processes > 1 and args.share:
        parser.error("--processes makes the shares itself: drop --share")


def model_config(args: argparse.Namespace, M: Diversity = 1) -> ICRegConfig:
    """The config of the member with M tasks. Raises UserError for a setting outside its range."""
    given = {field.name: getattr(args, field.name) for field in fields(ICRegConfig) if hasattr(args, field.name)}
    return ICRegConfig(**given).with_diversity(M)


# ---- types of options; argparse prints the message of an ArgumentTypeError


def diversities(text: str) -> list[Diversity]:
    """ "2,8,inf" as a list."""
    try:
        return ["inf" if word == "inf" else int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers: write one such as 1,8,64,inf") from None


def norm(word: str) -> float | None:
    """A positive number, or None for "none"."""
    if word == "none":
        return None
    try:
        number = float(word)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise argparse.ArgumentTypeError(f"must be a positive number or none, not {word!r}")
    return number


def share(text: str) -> Share | ArrayShare:
    """ "2/4" as Share(2, 4); "array" or "array/4" as the part of this task of a SLURM job array."""
    first, slash, last = text.partition("/")
    total = int(last) if last.isascii() and last.isdigit() else 0
    if first == "array" and (not slash or total):
        return array_share(total or None)
    number = int(first) if first.isascii() and first.isdigit() else 0
    if not 1 <= number <= total:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a share: write I/N, where I is from 1 to N, such as 2/4, or array/N in a SLURM job array"
        )
    return Share(number, total)


def array_share(total: int | None) -> ArrayShare:
    """The part of this task, from SLURM's variables; `total` is the number of parts, if it is given."""
    try:
        task = int(os.environ[f"{ARRAY}ID"])
        bounds = {
            name: int(os.environ[ARRAY + name])
            for name in ("MIN", "MAX", "STEP", "COUNT")
            if ARRAY + name in os.environ
        }
    except (KeyError, ValueError) as error:
        raise argparse.ArgumentTypeError("this is not a task of a SLURM job array: write I/N") from error
    size = bounds.get("MAX")
    count = bounds.get("COUNT", size if bounds.get("STEP", 1) == 1 else None)
    return ArrayShare(task, total, size if bounds.get("MIN") == 1 and count == size else None)
