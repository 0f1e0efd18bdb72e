"""`make demo`: train every tiny config, and print each model's result next to a baseline's.

Usage: python -m zoo.demo [--output_dir DIR] [--processes N] [CONFIG ...]

The models are trained several at a time, each in a process with one thread; with one process at a time, in this one.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.cli.config_names import config_files, find_config
from zoo.console.exit_codes import run_command
from zoo.console.plain_parser import PlainParser
from zoo.console.table import table
from zoo.console.threads import wait_briefly
from zoo.demo.processes import run_in_processes
from zoo.demo.schedule import Schedule, default_processes
from zoo.private_apis.deferred_imports import defer_imports
from zoo.text_formats.json_text import dump_json

if TYPE_CHECKING:
    from zoo.demo.time_left import TimeLeft


def run(place: int, output_dir: Path, time_left: "TimeLeft") -> dict[str, str]:
    """Train one config, evaluate its best checkpoint on the validation split, and describe the result.

    Args:
        place: place of the config in the schedule, from 0 on.
        output_dir: the run is in a folder below it, named after the config.
        time_left: that of the demo, with its schedule.

    Returns:
        The row of the table, and a sentence "note" where the result is below a baseline.
    """
    from zoo.baselines.of_data import baselines_of
    from zoo.cli.command_line import ZooCLI
    from zoo.demo.result_rows import result_row
    from zoo.demo.time_left import DemoProgress

    class DemoCLI(ZooCLI):
        def build_progress(self) -> DemoProgress:
            return DemoProgress(label, place, time_left)

        names_next_command = False

    configs = time_left.schedule.configs
    config, label = configs[place], f"model {place + 1} of {len(configs)}"
    left = time_left.seconds(place, 0.0)
    left_text = "" if left is None else f"; about {left / 60:.0f} min left for all"
    print(f"\n{label}: {config}{left_text}", file=sys.stderr, flush=True)
    start = time.perf_counter()
    folder = output_dir / find_config(config).stem
    quiet = "--trainer.enable_model_summary=false"
    fit = DemoCLI(["fit", f"--config={config}", f"--output_dir={folder}", quiet])
    seconds = time.perf_counter() - start
    no_table = ["--trainer.enable_progress_bar=false", "--verbose=false"]  # the row has the metrics
    cli = DemoCLI(["validate", f"--ckpt_path={folder / 'best.ckpt'}", *no_table])
    baselines = baselines_of(cli.trainer, cli.model, cli.datamodule)
    row = {
        "model": type(cli.model).__name__,
        "parameters": f"{sum(p.numel() for p in cli.model.parameters()):,}",
        **result_row(cli.model, cli.datamodule, cli.trainer.callback_metrics, baselines, fit.trainer.global_step),
        "seconds": f"{seconds:.0f}",
    }
    print(describe(label, row), flush=True)
    return row


def describe(label: str, row: dict[str, str]) -> str:
    """A row of the table as lines that can be printed before the other rows are known."""
    lines = [f"{label}: {row['model']}, {row['parameters']} parameters, trained in {row['seconds']} s", row["metric"]]
    lines += [f"baseline: {row['baseline']}"] if row["baseline"] else []
    return "\n  ".join(lines + ([row["note"]] if "note" in row else []))


def main() -> None:
    """Train the given configs, by default all that are named tiny/..., and print the table."""
    parser = PlainParser(prog="python -m zoo.demo", description=(__doc__ or "").split("\n")[0])
    tiny = [name for name in config_files() if name.startswith("tiny/")]
    parser.add_argument(
        "configs", nargs="*", metavar="CONFIG", default=tiny, help="names or files of configs (default: all tiny/...)"
    )
    stamp = time.strftime("%Y%m%d-%H%M%S")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs") / f"demo-{stamp}",
        help="folder of the runs (default: runs/demo-<time>)",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=default_processes(),
        help="number of models trained at a time (default: number of cores, at most 4: %(default)s)",
    )
    # Of the processes that the demo starts: which config they train, where its row goes, and when the demo started.
    parser.add_argument("--place", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.processes < 1:
        parser.error(f"--processes must be at least 1, not {args.processes}")
    configs = list(dict.fromkeys(args.configs))
    folders = [find_config(config).stem for config in configs]
    if len(set(folders)) < len(folders):
        same = next(name for name in folders if folders.count(name) > 1)
        parser.error(f"two configs are named {same}, the name of the folder of their runs: give one of them only")
    schedule = Schedule(configs, min(args.processes, len(configs)))
    if args.place is None and args.processes > 1 and len(configs) > 1:
        rows = run_in_processes(schedule, args.processes, args.output_dir, args.started)
    else:
        defer_imports()
        wait_briefly()
        from zoo.demo.time_left import TimeLeft  # imports Lightning: after --help

        time_left = TimeLeft(schedule, args.started)
        if args.place is not None:
            args.row.write_text(dump_json(run(args.place, args.output_dir, time_left)))
            return
        rows = {config: run(place, args.output_dir, time_left) for place, config in enumerate(configs)}
    in_order = [rows[config] for config in configs]
    notes = [f"{row['model']}: {note}" for row in in_order if (note := row.pop("note", None))]
    print("\n" + "\n\n".join([table(in_order), *notes]))
    print(f"\nThe runs are in {args.output_dir}; `make tensorboard` shows them.")
    for plot in sorted(args.output_dir.glob("*/*.png")):
        print(f"A plot: {plot}")


if __name__ == "__main__":
    sys.exit(run_command(main))
