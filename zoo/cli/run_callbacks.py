"""The callbacks that the command line adds to those of the options: messages, tables, time limit, several processes."""

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from zoo.baselines.of_data import baselines_of
from zoo.callbacks import Charts
from zoo.callbacks.one_thread import OneThread
from zoo.cli.closing_message import ClosingMessage
from zoo.cli.equal_ranks import EqualRanks, comparable_settings
from zoo.cli.opening_message import OpeningMessage
from zoo.cli.predicted_rows import PredictedRows, names_data
from zoo.cli.ranks import FailureReport
from zoo.cli.run_folder import CommonFolder, EmptyFolders
from zoo.cli.score_table import ScoreTable
from zoo.cli.time_limit import limit_time
from zoo.cli.trainer_options import shows_own_bar


def callbacks_of_run(cli: Any, trainer_config: dict[str, Any]) -> list[Callback]:
    """The callbacks of a command, in their order.

    Args:
        cli: the command, a `ZooCLI` whose settings are parsed.
        trainer_config: the Trainer's arguments.
    """
    verb, config = cli.verb, cli.config[cli.verb]
    step = cli.checkpoint_info.step if cli.checkpoint_info else None
    callbacks: list[Callback] = [OneThread()] if verb == "fit" else []
    if trainer_config["logger"]:
        callbacks.append(Charts(baselines_of))
    if shows_own_bar(trainer_config) and verb != "generate":
        callbacks.append(cli.build_progress())
    if verb in ("validate", "test") and config.verbose:
        callbacks.append(ScoreTable())
    if verb == "predict" and not names_data(cli.arguments.keys):
        callbacks.append(PredictedRows())
    if verb == "fit":
        if trainer_config["enable_model_summary"] is False and config.trainer.enable_model_summary is None:
            callbacks.append(OpeningMessage())
        callbacks += [ClosingMessage(step, cli.names_next_command), *limit_time(cli, cli.started)]
    files = [config.predictions.path, config.predictions.text_path] if verb == "predict" else []
    folders = [Path(config.output_dir), *(Path(file).parent for file in files if file)]
    settings = comparable_settings(config, step)
    own = [EqualRanks(settings), CommonFolder(), FailureReport(cli.ranks), EmptyFolders(folders)]
    return [*callbacks, *cli.callbacks, *own]
