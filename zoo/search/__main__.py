"""Hyperparameter search over any model of the zoo, with Optuna (`pip install '.[search]'`).

    python -m zoo.search --config tiny/regress_lm --space model.lr=log:1e-4:1e-2 --space model.dim=64,128

Each trial is a `zoo fit` in a folder below --output_dir; one that is worse than the median of the others at the same
step is stopped. A second call adds trials to the same study. The table is printed, and saved as trials.csv. Several
processes, also on several machines, may call it at the same time with one --storage; each runs --trials trials:

    python -m zoo.search ... --storage journal:runs/search/journal.log --output_dir runs/search

The score is --checkpoint.monitor of `zoo fit`, which is minimised or, with --checkpoint.mode max, maximised.
"""

import csv
import os
import sys
from pathlib import Path

from zoo.console.exit_codes import run_command
from zoo.console.messages import refuse_non_utf8
from zoo.console.plain_parser import PlainParser
from zoo.console.table import table
from zoo.console.threads import wait_briefly
from zoo.errors import UserError
from zoo.files.atomic import replacing
from zoo.private_apis.deferred_imports import defer_imports


def main() -> None:
    """`python -m zoo.search`: options that it does not know are passed to `zoo fit`."""
    about, *_ = (__doc__ or "").split("\n")
    parser = PlainParser(prog="python -m zoo.search", description=about)
    parser.add_argument(
        "--space",
        action="append",
        required=True,
        help="a setting and its values: name=low:high, name=log:low:high or name=a,b,c; 1:8 draws whole numbers, "
        "1.0:8.0 floats; may be given several times, once for each setting",
    )
    parser.add_argument("--trials", type=int, default=20, help="number of trials to run now (default: 20)")
    parser.add_argument(
        "--storage",
        help="where the study is kept: journal:FILE on a file system that all processes share, or the URL of a "
        "database, such as postgresql://USER@HOST/DATABASE (default: an SQLite file in the folder of the study)",
    )
    parser.add_argument(
        "--study",
        default="zoo",
        help="name of the study in the storage; each study needs its --output_dir (default: zoo)",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("runs/search"), help="folder of the study (default: runs/search)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the suggested values (default: 0)")
    refuse_non_utf8(sys.argv)
    args, fit = parser.parse_known_args()
    if args.trials < 1:
        parser.error(f"--trials must be at least 1, not {args.trials}")
    if "LOCAL_RANK" in os.environ:  # Lightning or torchrun has started this process as a rank
        raise UserError("a search runs in one process: start several searches with one --storage instead of ranks")
    defer_imports()
    wait_briefly()
    from zoo.search.study import search  # imports torch and Optuna: after --help

    rows = search(fit, args.space, args.trials, args.output_dir, args.seed, args.storage, args.study)
    with (
        replacing(args.output_dir / "trials.csv") as partial,
        open(partial, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    sys.exit(run_command(main))
