"""`make demo`: train every tiny config, and print each model's result next to a baseline's.

Usage: python -m zoo.demo [--output_dir DIR] [CONFIG ...]
"""

import argparse
import sys
import time
from pathlib import Path

from zoo.cli.config_names import config_files, find_config
from zoo.console.exit_codes import run_command
from zoo.console.table import table


def run(config: str, output_dir: Path) -> dict[str, str]:
    """Train one config, evaluate its best checkpoint on the validation split, and describe the result.

    Args:
        config: name or file, as for `--config`.
        output_dir: the run is in a folder below it, named after the config.
    """
    from zoo.cli.command_line import ZooCLI
    from zoo.demo.result_rows import result_row

    print(f"\n{config}", file=sys.stderr)
    start = time.perf_counter()
    folder = output_dir / find_config(config).stem
    ZooCLI(["fit", f"--config={config}", f"--output_dir={folder}"])
    seconds = time.perf_counter() - start
    cli = ZooCLI(["validate", f"--ckpt_path={folder / 'best.ckpt'}", "--trainer.enable_progress_bar=false"])
    return {
        "model": type(cli.model).__name__,
        "parameters": f"{sum(p.numel() for p in cli.model.parameters()):,}",
        **result_row(cli.model, cli.datamodule, cli.trainer.callback_metrics),
        "seconds": f"{seconds:.0f}",
    }


def main() -> None:
    """Train the given configs, by default all that are named tiny/..., and print the table."""
    parser = argparse.ArgumentParser(prog="python -m zoo.demo", description=(__doc__ or "").split("\n")[0])
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
    args = parser.parse_args()
    rows = [run(config, args.output_dir) for config in args.configs]
    print("\n" + table(rows))
    print(f"\nThe runs are in {args.output_dir}; `make tensorboard` shows them.")
    for plot in sorted(args.output_dir.glob("*/*.png")):
        print(f"A plot: {plot}")


if __name__ == "__main__":
    sys.exit(run_command(main))
