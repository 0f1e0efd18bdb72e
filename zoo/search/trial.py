"""One trial of a search: a `zoo fit` that reports each validation's score, and is stopped where it is pruned."""

from collections.abc import Sequence
from typing import Any

import optuna
from lightning.pytorch import Callback, Trainer

from zoo.callbacks import Checkpoint, Progress
from zoo.callbacks.checkpoint import require_logged
from zoo.cli.command_line import ZooCLI
from zoo.errors import UserError, check_choice

DIRECTIONS = {"min": "minimize", "max": "maximize"}  # of a study, by the mode of the checkpoint


class Prune(Callback):
    """Report each validation's metric to the trial, and stop the run when the pruner decides to.

    Args:
        trial: the Optuna trial of the run.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            monitor = trainer.checkpoint_callback.monitor
            require_logged(trainer, "--checkpoint.monitor", monitor)
            self.trial.report(trainer.callback_metrics[monitor].item(), trainer.global_step)
            if self.trial.should_prune():
                raise optuna.TrialPruned


class TrialCLI(ZooCLI):
    """A `zoo fit` that is refused, before it starts other processes, where it cannot be a trial.

    Args:
        argv: as for `ZooCLI`.
        callbacks: as for `ZooCLI`.
        label: name of the trial in the progress line.
    """

    names_next_command = False

    def __init__(self, argv: list[str], callbacks: Sequence[Callback], label: str) -> None:
        self.label = label
        super().__init__(argv, callbacks)

    def build_progress(self) -> Progress:
        return Progress(self.label)

    def after_instantiate_classes(self) -> None:
        super().after_instantiate_classes()
        check_trainer(self.trainer)


class SettingsCLI(ZooCLI):
    """Only reads and checks the settings of a `zoo fit`."""

    runs_verb = False

    def instantiate_classes(self) -> None:
        """Builds nothing."""

    def after_instantiate_classes(self) -> None:
        """There is nothing to check."""


def check_trainer(trainer: Trainer) -> None:
    """Raises UserError if a trainer writes no checkpoints, or runs in several processes."""
    if not isinstance(trainer.checkpoint_callback, Checkpoint):
        raise UserError("the search compares checkpoints: do not turn them off")
    if max(trainer.world_size, trainer.num_devices * trainer.num_nodes) > 1:
        raise UserError("a trial runs in one process: set --trainer.devices 1, and start several searches instead")


def read_monitor(fit: list[str]) -> tuple[str, str]:
    """The metric that trials are compared by, and the direction of the study.

    Args:
        fit: options of `zoo fit`.

    Raises:
        SystemExit: an option is not valid.
        UserError: a setting is not valid.
    """
    # Settings that are chosen from the data are chosen, and printed, by each trial.
    checkpoint = SettingsCLI(["fit", *fit, "--automatic=false"]).config.fit.checkpoint
    check_choice("--checkpoint.mode", checkpoint.mode, DIRECTIONS)
    return checkpoint.monitor, DIRECTIONS[checkpoint.mode]
