"""Hyperparameter search: an Optuna study whose trials are `zoo fit` runs, with pruning and a table of results.

Several processes, on one or more machines, may work on one study at the same time. The suggestions of a trial are drawn
with the seed and the trial's number, which the study's storage gives to one process only: no two processes draw alike.
"""

import re
import shutil
import sys
from pathlib import Path

from zoo.callbacks import Checkpoint
from zoo.errors import Diverged, UserError
from zoo.training.random_streams import derive

try:
    import optuna
except ImportError as error:
    raise UserError(
        "the search needs Optuna, an extra: pip install '.[search]' in the folder of the zoo's source"
    ) from error

from zoo.search.new_storage import removed_without_trials
from zoo.search.space import Space, check_same_spaces, has_result, read_spaces
from zoo.search.storage import open_storage, storage_failures
from zoo.search.trial import Prune, TrialCLI, read_monitor

MONITOR = "monitor"  # attribute of a trial: the metric of its score


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
        fit: options of `zoo fit` that all trials share. Their --checkpoint.monitor and --checkpoint.mode are the score
            that is minimised or maximised.
        spaces: the settings to search, as in `read_space`.
        trials: number of trials that this process runs now.
        folder: folder of the study; each trial's run is in `trial-NNN` below it.
        seed: seed of the suggestions.
        storage: where the study is kept, as in `open_storage`.
        study_name: name of the study in the storage, which may hold several.

    Returns:
        A table of all trials of the study that have ended, the best first.

    Raises:
        UserError: a space, an option or the storage is not valid, or does not fit the study's earlier trials. Nothing
            is left of a file or folder that only this call has used.
    """
    parsed = read_spaces(spaces)
    # Check the options with one value of each space before anything is written.
    monitor, direction = read_monitor([*fit, *(space.example() for space in parsed)])
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # the search itself reports its trials
    try:
        with removed_without_trials(storage, folder), storage_failures(storage, folder):
            study = _open_study(study_name, storage, folder, direction)
            _check_study(study, parsed, monitor, direction)
            _optimize(study, fit, parsed, trials, folder, seed, monitor)
            finished = [trial for trial in study.trials if trial.state.is_finished()]
    finally:
        optuna.logging.set_verbosity(verbosity)
    return _rows(finished, [space.name for space in parsed], direction)


def _rows(trials: list[optuna.trial.FrozenTrial], names: list[str], direction: str) -> list[dict[str, str]]:
    """The table of trials, the best first. A trial of a call that was refused may lack values."""
    sign = -1 if direction == "maximize" else 1
    trials = sorted(trials, key=lambda t: (t.state != optuna.trial.TrialState.COMPLETE, sign * (t.value or 0.0)))
    return [
        {"trial": str(t.number), **{name: str(t.params.get(name, "")) for name in names}}
        | {"best": "" if t.value is None else f"{t.value:.5g}", "state": t.state.name.lower()}
        for t in trials
    ]


def _open_study(name: str, url: str | None, folder: Path, direction: str) -> optuna.Study:
    """The study of a name in its storage. Raises UserError if the folder has trials that are not of this study."""
    trials = [int(path.name[6:]) for path in folder.iterdir() if re.fullmatch(r"trial-[0-9]{3,}", path.name)]
    storage = open_storage(url, folder)
    is_known = name in optuna.get_all_study_names(storage)
    number = len(optuna.load_study(study_name=name, storage=storage).trials) if is_known else 0
    if trials and max(trials) >= number:
        raise UserError(f"{folder} holds trials of another study than {name!r}: give another --output_dir")
    return optuna.create_study(
        study_name=name,
        storage=storage,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
        direction=optuna.study.StudyDirection[direction.upper()],
        load_if_exists=True,
    )


def _check_study(study: optuna.Study, spaces: list[Space], monitor: str, direction: str) -> None:
    """Raises UserError if the study has searched other settings, or for another score."""
    earlier = study.trials
    scores = {trial.user_attrs.get(MONITOR, monitor) for trial in earlier if has_result(trial)}
    if scores - {monitor} or study.direction.name.lower() != direction:
        raise UserError(
            f"the study {study.study_name!r} is to {study.direction.name.lower()} {' and '.join(scores) or 'a score'}, "
            f"this call to {direction} {monitor}: give the same --checkpoint.monitor and --checkpoint.mode, or another "
            "--study and --output_dir"
        )
    check_same_spaces(spaces, earlier, study.study_name)


def _optimize(
    study: optuna.Study, fit: list[str], spaces: list[Space], trials: int, folder: Path, seed: int, monitor: str
) -> None:
    """Run `trials` more trials, in this process."""

    labels: dict[int, str] = {}  # by number of the trial in the study

    def objective(trial: optuna.Trial) -> float:
        # Other processes may work on trials at the moment: TPE takes their results to be bad, and looks elsewhere.
        study.sampler = optuna.samplers.TPESampler(seed=derive(seed, "trial", trial.number) % 2**32, constant_liar=True)
        trial.set_user_attr(MONITOR, monitor)
        run = folder / f"trial-{trial.number:03d}"
        is_new = not run.exists()
        try:
            label = labels[trial.number] = f"trial {len(labels) + 1} of {trials}"
            settings = [space.suggest(trial) for space in spaces]
            _report(f"{label}, {run.name}: {', '.join(setting.removeprefix('--') for setting in settings)}")
            cli = TrialCLI(
                ["fit", *fit, f"--checkpoint.monitor={monitor}", *settings, f"--output_dir={run}"],
                [Prune(trial)],
                label,
            )
        except optuna.TrialPruned:
            raise
        except Diverged as error:
            _report(f"{label}: {error}")
            raise optuna.TrialPruned(str(error)) from error
        except BaseException as error:
            # The error ends the search, and is reported by the command: Optuna need not print its traceback.
            optuna.logging.set_verbosity(optuna.logging.ERROR)
            if is_new and isinstance(error, UserError) and not [*run.glob("*.ckpt")]:
                shutil.rmtree(run, ignore_errors=True)
            if isinstance(error, SystemExit):  # Optuna ends the trial for an exception of another kind only
                raise _Stopped from error
            raise
        checkpoint = cli.trainer.checkpoint_callback
        assert isinstance(checkpoint, Checkpoint)
        if checkpoint.best_score is None:
            if checkpoint.monitor not in cli.trainer.callback_metrics and not any(map(has_result, study.trials)):
                raise UserError(
                    f"the trial ended after {cli.trainer.global_step} steps without a validation, so that it has no "
                    "score: set --trainer.val_check_interval to at most as many steps"
                )
            raise optuna.TrialPruned("no validation had a finite result")
        return checkpoint.best_score

    def report_end(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if trial.state == optuna.trial.TrialState.COMPLETE:
            best = study.best_trial
            _report(
                f"{labels[trial.number]}: {monitor} {trial.value:.5g}; the best so far is {best.value:.5g}, of "
                f"trial-{best.number:03d}"
            )
        elif trial.last_step is not None:  # pruned after a validation
            value = trial.intermediate_values[trial.last_step]
            _report(f"{labels[trial.number]}: stopped at step {trial.last_step} with {monitor} {value:.5g}")

    stopped: BaseException | None = None
    try:
        study.optimize(objective, n_trials=trials, callbacks=[report_end])
    except _Stopped as error:
        stopped = error.__cause__
    if stopped is not None:
        raise stopped


def _report(message: str) -> None:
    print(f"zoo: {message}", file=sys.stderr, flush=True)


class _Stopped(Exception):
    """A signal, or a word of the command that is not valid, ended a trial."""
