"""Hyperparameter search over any model of the zoo, with Optuna (`pip install zoo[search]`).

    python -m zoo.search --config configs/tiny/regress_lm.yaml --space model.lr=log:1e-4:1e-2 --space model.dim=64,128

Each trial is a `zoo fit` of its own below --output_dir; one that falls behind the median of the others at the same step
is stopped. A second call goes on with the same study. The table is printed, and kept as trials.csv.
"""

import argparse
import csv
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from zoo.callbacks import Checkpoint
from zoo.cli.command_line import ZooCLI
from zoo.console.exit_codes import run_command
from zoo.console.table import table
from zoo.errors import UserError

try:
    import optuna
except ImportError:
    sys.exit("zoo: the search needs Optuna, which is an extra: pip install 'zoo[search]'")


class Prune(Callback):
    """Tell the trial how each validation went, and stop where it is not worth going on."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.checkpoint_callback.mode != "min":
            raise UserError("the search minimises: give a loss or an error as --checkpoint.monitor, with mode min")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.trial.report(trainer.callback_metrics[trainer.checkpoint_callback.monitor].item(), trainer.global_step)
            if self.trial.should_prune():
                raise optuna.TrialPruned


def suggest(trial: optuna.Trial, space: str) -> str:
    """`--name=value` for one setting: "name=a,b,c" picks one, "name=low:high" and "name=log:low:high" lie between.

    Raises:
        ValueError: it is none of these.
    """
    name, _, domain = space.partition("=")
    if "," in domain:
        return f"--{name}={trial.suggest_categorical(name, domain.split(','))}"
    between = re.fullmatch(r"(log:)?([^:]+):([^:]+)", domain)
    picks: list[tuple[type, Callable]] = [(int, trial.suggest_int), (float, trial.suggest_float)]
    for number, pick in picks if between else []:
        try:
            low, high = number(between[2]), number(between[3])  # type: ignore[index]
        except ValueError:
            continue
        return f"--{name}={pick(name, low, high, log=bool(between[1]))}"  # type: ignore[index]
    raise UserError(f"--space {space}: write name=low:high, name=log:low:high or name=a,b,c")


def search(fit: list[str], spaces: list[str], trials: int, folder: Path, seed: int = 0) -> list[dict[str, str]]:
    """Run `trials` more trials of the study in `folder`; returns the table of all, best first."""
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="zoo",
        storage=f"sqlite:///{folder / 'study.db'}",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
        load_if_exists=True,
    )

    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))  # a second call draws other points

    def objective(trial: optuna.Trial) -> float:
        settings = [suggest(trial, space) for space in spaces]
        run = folder / f"trial-{trial.number:03d}"
        cli = ZooCLI(["fit", *fit, *settings, f"--output_dir={run}"], callbacks=[Prune(trial)])
        checkpoint = cli.trainer.checkpoint_callback
        assert isinstance(checkpoint, Checkpoint)
        return float("nan") if checkpoint.best_score is None else checkpoint.best_score

    study.optimize(objective, n_trials=trials)
    done = [trial for trial in study.trials if trial.state.is_finished()]
    done.sort(key=lambda trial: (trial.state != optuna.trial.TrialState.COMPLETE, trial.value or 0.0))
    return [
        {"trial": str(t.number), **{name: f"{value}" for name, value in t.params.items()}}
        | {"best": "" if t.value is None else f"{t.value:.5g}", "state": t.state.name.lower()}
        for t in done
    ]


def main() -> None:
    """`python -m zoo.search`: options that it does not know are those of `zoo fit`."""
    about, *_ = (__doc__ or "").split("\n")
    parser = argparse.ArgumentParser(prog="python -m zoo.search", description=about, allow_abbrev=False)
    parser.add_argument("--space", action="append", required=True, help="name=low:high, =log:low:high or =a,b,c")
    parser.add_argument("--trials", type=int, default=20, help="how many to run now (default: 20)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/search"), help="the study (default: runs/search)")
    parser.add_argument("--seed", type=int, default=0, help="of the suggestions")
    args, fit = parser.parse_known_args()
    rows = search(fit, args.space, args.trials, args.output_dir, args.seed)
    with open(args.output_dir / "trials.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, dict.fromkeys(name for row in rows for name in row))
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    sys.exit(run_command(main))
