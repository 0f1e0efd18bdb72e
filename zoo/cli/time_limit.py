"""`--budget`: the share of the time for the data, the callback that plans the steps, the plan in config.yaml."""

import sys
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.callbacks.budget import Budget, count_validations, parse_duration
from zoo.cli.run_folder import SaveConfig
from zoo.training.choices import PREPARATION_SHARE


@rank_zero_only
def print_shares(budget: str, left: float) -> None:
    """Print how the time of a run whose settings are chosen is divided.

    Args:
        budget: as the option is written.
        left: seconds of it that are left.
    """
    print(
        f"zoo: --budget {budget}: {parse_duration(budget) - left:.0f} s have passed; at most about "
        f"{PREPARATION_SHARE * left:.0f} s are for preparing the training data, the rest is for training",
        file=sys.stderr,
    )


def limit_time(cli: Any, started: float) -> list[Callback]:
    """The callback that plans the steps of a `fit` with --budget, and records them; none without the option.

    The saved config has the steps that the time allowed, without --budget, which would plan them again.

    Args:
        cli: a command whose settings are parsed.
        started: `time.monotonic()` at its start.
    """
    config = cli.config.fit
    if (budget := config.budget) is None:
        return []
    config.budget = None
    comment = f"planned for --budget {budget}"
    callback = Budget(
        parse_duration(budget),
        started,
        count_validations(config.trainer),
        lambda settings: _record(cli, settings, ": ".join(filter(None, [comment, callback.summary]))),
    )
    return [callback]


def _record(cli: Any, settings: dict[str, Any], comment: str) -> None:
    """Write the numbers of steps that --budget allows into the run's config.yaml, with a comment."""
    config, trainer = cli.config.fit, cli.trainer
    if "total_steps" in settings:  # not those of a pretraining only
        config.trainer.max_steps = settings.pop("total_steps")
        config.trainer.max_epochs = None
        config.trainer.val_check_interval = settings.pop("val_check_interval")
    for name, value in settings.items():
        config.model.init_args[name] = value
    for callback in trainer.callbacks:
        if isinstance(callback, SaveConfig):
            callback.comment = comment
            callback.save_config(trainer, cli.model, "fit")
