"""Hyperparameter search: an Optuna study whose trials are `zoo fit` runs, with pruning and a table of results.

Several processes, on one or more machines, may work on one study at the same time. The suggestions of a trial are drawn
with the seed and the trial's number, which the study's storage gives to one process only: no two processes draw alike.
"""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from zoo.callbacks import Checkpoint
from zoo.cli.command_line import ZooCLI
from zoo.errors import Diverged, UserError
from zoo.training.random_streams import derive

try:
    import optuna
    from optuna.exceptions import ExperimentalWarning
    from optuna.storages import BaseStorage, JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend
except ImportError as error:
    raise UserError("the search needs Optuna, which is an extra: pip install 'zoo[search]'") from error

JOURNAL = "journal:"  # a storage that is one file, also on the shared file system of a cluster
SECONDS_BETWEEN_SIGNS = 30  # of life of a process that works on a trial in a database


class Prune(Callback):
    """Report each validation's metric to the trial, and stop the run where the pruner says so.

    Args:
        trial: the Optuna trial of the run.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not isinstance(checkpoint := trainer.checkpoint_callback, Checkpoint):
            raise UserError("the search compares checkpoints: do not turn them off")
        if trainer.world_size > 1:
            raise UserError("a trial runs in one process: drop --trainer.devices, and start several searches instead")
        if checkpoint.mode != "min":
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
        UserError: `space` is none of these, or is not that of the study's earlier trials.
    """
    name, _, domain = space.partition("=")
    if "," in domain:
        try:
            return f"--{name}={trial.suggest_categorical(name, domain.split(','))}"
        except ValueError as error:  # Optuna compares the choices with those of the study
            raise UserError(
                f"--space {space}: the study has other choices of {name}; give the same ones, or another study"
            ) from error
    between = re.fullmatch(r"(log:)?([^:]+):([^:]+)", domain)
    suggestions: list[tuple[type, Callable]] = [(int, trial.suggest_int), (float, trial.suggest_float)]
    for number, suggestion in suggestions if between else []:
        try:
            low, high = number(between[2]), number(between[3])  # type: ignore[index]
        except ValueError:
            continue
        try:
            return f"--{name}={suggestion(name, low, high, log=bool(between[1]))}"  # type: ignore[index]
        except ValueError as error:  # such as low > high
            raise UserError(f"--space {space}: {error}") from error
    raise UserError(f"--space {space}: write name=low:high, name=log:low:high or name=a,b,c")


def open_storage(url: str | None, folder: Path) -> BaseStorage:
    """The storage of a study.

    Args:
        url: `journal:FILE`, or the URL of a database as Optuna and SQLAlchemy read it, such as sqlite:///FILE,
            postgresql://USER@HOST/DATABASE or mysql://...; None is an SQLite file in the folder.
        folder: of the study.

    Raises:
        UserError: the URL is not one, the database cannot be reached, or the package of its kind is missing.
    """
    if url is not None and url.startswith(JOURNAL):
        path = Path(url.removeprefix(JOURNAL).removeprefix("//"))
        if path.is_dir() or not path.name:
            raise UserError(f"--storage {url} names no file: write journal:FILE")
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    if url is None:
        return RDBStorage(f"sqlite:///{folder / 'study.db'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # Signs of life: another process fails the trials of one that was killed.
            return RDBStorage(url, heartbeat_interval=SECONDS_BETWEEN_SIGNS, grace_period=4 * SECONDS_BETWEEN_SIGNS)
    except Exception as error:  # of SQLAlchemy, of the database's package, or of Optuna
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--storage {_without_password(url)} cannot be used ({reason}): see --help") from error


def _without_password(url: str) -> str:
    return re.sub(r"(?<=//)([^/@:]*):[^/@]*@", r"\1:***@", url)


def search(
    fit: list[str],
    spaces: list[str],
    trials: int,
    folder: Path,
    seed: int = 0,
    storage: str | None = None,
    study_name: str = "zoo",
) -> list[dict[str, str]]:
    """Run more trials of a study, which is created if there is none.

    Args:
        fit: options of `zoo fit` that all trials share.
        spaces: the settings to search, as in `suggest`.
        trials: number of trials that this process runs now.
        folder: of the study; each trial's run is in `trial-NNN` below it.
        seed: of the suggestions.
        storage: where the study is kept, as in `open_storage`.
        study_name: name of the study in the storage, which may hold several.

    Returns:
        A table of all trials of the study that have ended, the best first.
    """
    database = folder / "study.db"
    missing = [path for path in (database, folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        study = optuna.create_study(
            study_name=study_name,
            storage=open_storage(storage, folder),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
            load_if_exists=True,
        )
        _optimize(study, fit, spaces, trials, folder, seed)
    except (UserError, OSError, SystemExit):
        # The first trial was refused: remove what this call has created.
        content = [*folder.iterdir()]
        if content == [database] * (database in content) and database in missing:
            database.unlink(missing_ok=True)
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


def _optimize(study: optuna.Study, fit: list[str], spaces: list[str], trials: int, folder: Path, seed: int) -> None:
    """Run `trials` more trials, in this process."""

    def objective(trial: optuna.Trial) -> float:
        # Other processes may work on trials at the moment: TPE takes their results to be bad, and looks elsewhere.
        study.sampler = optuna.samplers.TPESampler(seed=derive(seed, "trial", trial.number) % 2**32, constant_liar=True)
        settings = [suggest(trial, space) for space in spaces]
        run = folder / f"trial-{trial.number:03d}"
        try:
            cli = ZooCLI(["fit", *fit, *settings, f"--output_dir={run}"], callbacks=[Prune(trial)])
        except Diverged as error:
            raise optuna.TrialPruned(str(error)) from error
        except SystemExit as stop:  # after a signal; Optuna ends the trial for an exception of another kind only
            raise _Stopped from stop
        checkpoint = cli.trainer.checkpoint_callback
        assert isinstance(checkpoint, Checkpoint)
        if checkpoint.best_score is None:
            raise optuna.TrialPruned("no validation had a finite result")
        return checkpoint.best_score

    stopped: BaseException | None = None
    try:
        study.optimize(objective, n_trials=trials)
    except _Stopped as error:
        stopped = error.__cause__
    if stopped is not None:
        raise stopped


class _Stopped(Exception):
    """A signal, or a word of the command that is not valid, ended a trial."""
