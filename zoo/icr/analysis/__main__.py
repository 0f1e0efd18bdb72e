"""Analyses over all checkpoints of a task-diversity sweep; each writes a JSON file and a figure.

python -m zoo.icr.analysis scores     runs/sweep                 # errors on new tasks and on tasks of the pool
python -m zoo.icr.analysis gradients  runs/sweep                 # of the loss, by the prompts' distribution
python -m zoo.icr.analysis pca        runs/sweep/gradients.json  # principal components of the gradients
python -m zoo.icr.analysis regression runs/sweep/gradients.json  # the error on new tasks from the gradients
"""

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.console.exit_codes import run_command
from zoo.console.plain_parser import PlainParser
from zoo.files.atomic import replacing
from zoo.icr.analysis import explain
from zoo.icr.analysis import figures as analysis_figures
from zoo.icr.analysis.gradients import gradients
from zoo.icr.analysis.saved_models import find_models
from zoo.icr.analysis.scores import scores
from zoo.text_formats.json_text import dump_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(name: str, folder: Path, result: dict[str, Any], figure: "Figure") -> None:
    """Write `<name>.json` and `<name>.png`; an existing file is replaced only by a complete new one."""
    folder.mkdir(parents=True, exist_ok=True)
    text = dump_json(result, indent=1) + "\n"
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    for suffix, content in (("json", text.encode()), ("png", picture.getvalue())):
        target = folder / f"{name}.{suffix}"
        with replacing(target) as partial:
            partial.write_bytes(content)
        print(f"wrote {target}")


def run_analysis(args: argparse.Namespace) -> dict[str, Any]:
    """The result of the command in `args`."""
    if args.command == "scores":
        return scores(find_models(args.source), args.n_prompts)
    if args.command == "gradients":
        return gradients(find_models(args.source), args.n_prompts, args.n_ood_samples, args.seed)
    return getattr(explain, args.command)(explain.read(args.source))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = PlainParser(
        prog="python -m zoo.icr.analysis", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = {
        "scores": "errors of every checkpoint on new tasks and on tasks of the pool, distances to ridge and dMMSE",
        "gradients": "gradients of the expected loss by mean and standard deviation of x, task and noise",
        "pca": "principal components of the gradients",
        "regression": "ridge regression of the error on new tasks (the OOD score) on the gradients",
    }
    parsers = {name: commands.add_parser(name, help=text, description=text) for name, text in about.items()}
    for name, command in parsers.items():
        reads_sweep = name in ("scores", "gradients")
        source = "the folder of a sweep" if reads_sweep else "a gradients.json, or its folder"
        command.add_argument("source", type=Path, metavar="DIR" if reads_sweep else "FILE", help=source)
        command.add_argument("--output", type=Path, help="folder to write into (default: the folder of the input)")
    more = parsers["scores"].add_argument
    more("--n_prompts", type=int, default=2048, help="number of prompts of each kind (default: 2048)")
    more = parsers["gradients"].add_argument
    more("--n_prompts", type=int, default=4096, help="number of prompts for each gradient (default: 4096)")
    more("--n_ood_samples", type=int, default=10000, help="number of prompts for the OOD score (default: 10000)")
    more("--seed", type=int, default=0, help="seed of the prompts (default: 0)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """`python -m zoo.icr.analysis`."""
    args = parse(argv)
    result = run_analysis(args)
    folder = args.source if args.source.is_dir() else args.source.parent
    write(args.command, args.output or folder, result, getattr(analysis_figures, args.command)(result))


if __name__ == "__main__":
    sys.exit(run_command(main))
