"""Analyses over all checkpoints of a task-diversity sweep, each a JSON file and a picture.

    python -m zoo.icr.analysis scores     runs/sweep                 # errors on new tasks and on the pool's
    python -m zoo.icr.analysis gradients  runs/sweep                 # of the loss, by the prompts' distribution
    python -m zoo.icr.analysis pca        runs/sweep/gradients.json  # their principal components over training
    python -m zoo.icr.analysis regression runs/sweep/gradients.json  # what they say of the error on new tasks
"""

import argparse
import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.console.exit_codes import run_command
from zoo.icr.analysis import explain as explained
from zoo.icr.analysis import figures as analysis_figures
from zoo.icr.analysis.gradients import gradients
from zoo.icr.analysis.saved_models import saved
from zoo.icr.analysis.scores import scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(name: str, folder: Path, result: dict[str, Any], figure: "Figure") -> None:
    """Write `<name>.json` and `<name>.png`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    for suffix, content in (("json", text.encode()), ("png", picture.getvalue())):
        target = folder / f"{name}.{suffix}"
        partial = target.with_name(target.name + ".tmp")
        partial.write_bytes(content)
        os.replace(partial, target)
        print(f"wrote {target}")


def analyse(args: argparse.Namespace) -> dict[str, Any]:
    """The result of one command."""
    if args.command == "scores":
        return scores(saved(args.source), args.n_prompts)
    if args.command == "gradients":
        return gradients(saved(args.source), args.n_prompts, args.n_ood_samples, args.seed)
    return getattr(explained, args.command)(explained.read(args.source))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m zoo.icr.analysis", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = {
        "scores": "errors on new tasks and on the pool's, and distances to ridge and dMMSE, of every checkpoint",
        "gradients": "gradients of the expected loss by mean and standard deviation of x, task and noise",
        "pca": "principal components of the gradients",
        "regression": "ridge regression of the error on new tasks (the OOD score) on the gradients",
    }
    made = {name: commands.add_parser(name, help=text, description=text) for name, text in about.items()}
    for name, command in made.items():
        of_a_sweep = name in ("scores", "gradients")
        source = "the folder of a sweep" if of_a_sweep else "a gradients.json, or its folder"
        command.add_argument("source", type=Path, metavar="DIR" if of_a_sweep else "FILE", help=source)
        command.add_argument("--output", type=Path, help="folder to write into (default: where the input lies)")
    made["scores"].add_argument("--n_prompts", type=int, default=2048, help="prompts of each kind (default: 2048)")
    more = made["gradients"].add_argument
    more("--n_prompts", type=int, default=4096, help="prompts that a gradient is the mean of (default: 4096)")
    more("--n_ood_samples", type=int, default=10000, help="prompts of the OOD score (default: 10000)")
    more("--seed", type=int, default=0, help="of the prompts (default: 0)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """`python -m zoo.icr.analysis`."""
    args = parse(argv)
    result = analyse(args)
    beside = args.source if args.source.is_dir() else args.source.parent
    write(args.command, args.output or beside, result, getattr(analysis_figures, args.command)(result))


if __name__ == "__main__":
    sys.exit(run_command(main))
