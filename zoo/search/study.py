"""Hyperparameter search: an Optuna study whose trials are `zoo fit` runs, with pruning and a table of results."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from zoo.callbacks import Checkpoint
from zoo.cli.command_line import ZooCLI
from zoo.errors import UserError

try:
    import optuna
except ImportError as error:
    raise UserError("the search needs Optuna, which is an extra: pip install 'zoo[search]'") from error


class Prune(Callback):
    """Report each validation's metric to the trial, and stop the run where the pruner says so.

    Args:
        trial: the Optuna trial of the run.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.checkpoint_callback.mode != "min":
            raise UserError("the search minimises: set --checkpoint.monitor to a loss or an error, with mode min")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.trial.report(trainer.callback_metrics[trainer.checkpoint_callback.monitor].item(), trainer.global_step)
            if self.trial.should_prune():
                raise optuna.TrialPruned


def suggest(trial: optuna.Trial, space: str) -> str:
    """The option `--name=value` that the trial tries for one setting.

    Args:
        trial: the Optuna trial.
        space: "name=a,b,c" for a choice, "name=low:high" or "name=log:low:high" for a number between the two; whole
            numbers where both ends are whole.

    Raises:
        UserError: `space` is none of these.
    """
    name, _, domain = space.partition("=")
    if "," in domain:
        return f"--{name}={trial.suggest_categorical(name, domain.split(','))}"
    between = re.fullmatch(r"(log:)?([^:]+):([^:]+)", domain)
    suggestions: list[tuple[type, Callable]] = [(int, trial.suggest_int), (float, trial.suggest_float)]
    for number, suggestion in suggestions if between else []:
        try:
            low, high = number(between[2]), number(between[3])  # type: ignore[index]
        except ValueError:
            continue
        return f"--{name}={suggestion(name, low, high, log=bool(between[1]))}"  # type: ignore[index]
    raise UserError(f"--space {space}: write name=low:high, name=log:low:high or name=a,b,c")


def search(fit: list[str], spaces: list[str], trials: int, folder: Path, seed: int = 0) -> list[dict[str, str]]:
    """Run more trials of the study in `folder`, which is created if there is none.

    Args:
        fit: options of `zoo fit` that all trials share.
        spaces: the settings to search, as in `suggest`.
        trials: number of trials to run now.
        folder: of the study; each trial's run is in `trial-NNN` below it.
        seed: of the suggestions.

    Returns:
        A table of all trials of the study, the best first.
    """
    database = folder / "study.db"
    missing = [path for path in (database, folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name="zoo",
        storage=f"sqlite:///{database}",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
        load_if_exists=True,
    )
    # A second call must not repeat the suggestions of the first.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))

    def objective(trial: optuna.Trial) -> float:
        settings = [suggest(trial, space) for space in spaces]
        run = folder / f"trial-{trial.number:03d}"
        cli = ZooCLI(["fit", *fit, *settings, f"--output_dir={run}"], callbacks=[Prune(trial)])
        checkpoint = cli.trainer.checkpoint_callback
        assert isinstance(checkpoint, Checkpoint)
        return float("nan") if checkpoint.best_score is None else checkpoint.best_score

    try:
        study.optimize(objective, n_trials=trials)
    except (UserError, OSError, SystemExit):
        # The first trial was refused: remove what this call has created.
        if database in missing and list(folder.iterdir()) == [database]:
            database.unlink()
            for path in missing[1:]:
                path.rmdir()
        raise
    finished = [trial for trial in study.trials if trial.state.is_finished()]
    finished.sort(key=lambda trial: (trial.state != optuna.trial.TrialState.COMPLETE, trial.value or 0.0))
    return [
        {"trial": str(t.number), **{name: f"{value}" for name, value in t.params.items()}}
        | {"best": "" if t.value is None else f"{t.value:.5g}", "state": t.state.name.lower()}
        for t in finished
    ]
