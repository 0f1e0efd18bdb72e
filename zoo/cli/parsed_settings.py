"""Checks and changes of a verb's settings after they are parsed and before anything is built or read."""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.callbacks.budget import ONE_PROCESS, parse_duration, refusal
from zoo.cli.arguments import RUN_FOLDER
from zoo.cli.checkpoint_info import CheckpointInfo
from zoo.cli.linked_arguments import follows_model, given_options, linked_arguments
from zoo.cli.ranks import Ranks
from zoo.cli.resume import refuse_changed_settings
from zoo.cli.run_folder import fill_in, refuse_other_run
from zoo.cli.run_lock import locked_folder
from zoo.cli.trainer_options import as_list, named
from zoo.cli.world import World
from zoo.datamodules.sources.corpus import data_label
from zoo.errors import UserError
from zoo.files.remote_files import is_copy
from zoo.private_apis.jsonargparse_api import wrong_null, wrong_null_argument
from zoo.training.module import ZooModule


def find_null(parser: Any, config: Any, classes: Mapping[str, type | None]) -> str | None:
    """jsonargparse's message about the first option that is null although its type excludes it; None if there is none.

    Args:
        parser: parser of the verb.
        config: the settings of the verb.
        classes: the classes of "model" and "data".
    """
    message = wrong_null(parser, config)
    for group, cls in classes.items():
        if message is None and cls is not None:
            skip = linked_arguments(cls)
            message = wrong_null_argument(cls, config[group].get("init_args", {}), skip)
            message = message and message.replace('Parser key "', f'Parser key "{group}.', 1)
    return message


def check_settings(config: Any, verb: str, info: CheckpointInfo | None) -> None:
    """Refuse settings that the types of options cannot express.

    Args:
        config: the settings of a verb, as the parser returns them.
        verb: the verb.
        info: the checkpoint that was named, if any.

    Raises:
        UserError: the seed is out of range, a verb other than fit lacks a trained model or has a time limit, the time
            limit is not a duration, or --overwrite is given to another verb than predict.
    """
    if isinstance(seed := config.seed_everything, int) and not 0 <= seed < 2**32:
        raise UserError(f"--seed_everything must be from 0 to {2**32 - 1}, not {seed}")
    if verb != "fit" and not info and not config.model.init_args.get("weights"):
        raise UserError(f"zoo {verb} needs a trained model: add --ckpt_path FILE")
    if config.overwrite:
        if verb != "predict":
            instead = ", and give a new --output_dir: no run is replaced" if verb == "fit" else ""
            raise UserError(f"--overwrite is for the files of predict: drop it for {verb}{instead}")
        config.predictions.overwrite = True
    if config.budget is not None:
        if verb != "fit":
            raise UserError(f"--budget is a time limit of fit: drop it for {verb}")
        parse_duration(config.budget)


def check_fit(config: Any, model: type | None, ranks: Ranks, may_restart: bool) -> None:
    """Refuse a `fit` for what is known before its data is read: its time limit and its folder.

    Args:
        config: the settings of the verb.
        model: the class of the model.
        ranks: the processes of the run; only the first looks at the folder.
        may_restart: whether a run that saved no checkpoint may be started again in its folder.

    Raises:
        UserError: the schedule cannot be planned for a time limit, a minimum of steps excludes the limit, or the folder
            holds another run.
        OSError: nothing can be written into the folder.
    """
    check_time_limit(config)
    world = ranks.world or World.from_environment()
    if config.budget is not None:
        if model is not None and not getattr(model, "plans_steps", False):
            raise UserError(refusal(model, parse_duration(config.budget)))
        trainer = config.trainer
        has_devices = str(trainer.devices).isdecimal() and int(trainer.devices) > 1
        if trainer.num_nodes > 1 or has_devices or world is not None:
            raise UserError(ONE_PROCESS)
    if world is None or world.rank == 0:
        folder = checkpoint_folder(config)
        with locked_folder(folder):
            refuse_other_run(folder, config.ckpt_path, None if may_restart else Path(config.output_dir))


def checkpoint_folder(config: Any) -> Path:
    """The folder into which `fit` writes its checkpoints: the run's, unless --checkpoint.dirpath names another."""
    return Path(config.checkpoint.dirpath or config.output_dir)


def check_time_limit(config: Any) -> None:
    """Raises UserError if a run has a time limit and a minimum of steps or epochs, below which it does not stop."""
    trainer = config.trainer
    limit = "--budget" if config.budget is not None else "--trainer.max_time" if trainer.max_time is not None else None
    if limit is None and named(trainer.callbacks, "Timer"):
        limit = "the time limit of the callback Timer"
    for name in ("min_steps", "min_epochs"):
        if limit is not None and trainer[name]:
            raise UserError(f"--trainer.{name} {trainer[name]} excludes {limit}, which could not end the run: drop one")


def move_data_dir(config: Any) -> None:
    """Replace the config's data by --data_dir, so that a saved config has one place for it.

    Raises:
        UserError: the data module reads no data, or the name of the data is empty.
    """
    if config.data_dir is not None:
        if "data" not in config.data.init_args:
            name = config.data.class_path.rpartition(".")[2]
            fit = "; a model of your data: zoo fit --config regress_lm --model.weights FILE --data_dir DATA"
            more = fit if name == "SyntheticTables" else ""
            raise UserError(f"{name} draws its own data and reads none: drop --data_dir{more}")
        config.data.init_args.data, config.data_dir = config.data_dir, None
    if isinstance(data := config.data.init_args.get("data"), str) and not data.strip():
        raise UserError("--data_dir is empty: give a file, a folder or the name of a data set")


def fill_data_settings(config: Any, model: type | None, keys: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Set options of the data that follow from the model's and were not given, as the tokenizer of an encoder.

    Args:
        config: the settings of the verb.
        model: the class of the model.
        keys: (dotted key, its source) of all settings that were given.

    Returns:
        Their keys, in the form of `keys`.
    """
    if model is None or not issubclass(model, ZooModule):
        return []
    keys, filled = list(keys), []
    settings = config.model.get("init_args") or {}  # absent for a class without arguments
    for name, value in model.data_settings(settings).items():
        if name in config.data.init_args and follows_model(keys, name):
            config.data.init_args[name] = value
            filled.append((f"data.init_args.{name}", ""))
    return filled


def compare_with_checkpoint(info: CheckpointInfo, config: Any, verb: str, data: type | None) -> None:
    """Compare the settings with those of the training, and print a warning where texts or tokens differ.

    Args:
        info: the checkpoint.
        config: the settings of the verb.
        verb: the verb; `fit` resumes.
        data: the class of the data.

    Raises:
        UserError: a resumed run has other data or settings that it cannot change, or texts are written in another way.
    """
    if verb == "fit":
        if not config.allow_other_data:
            info.check_label(config.data.init_args.get("data"))
        refuse_changed_settings(info.path, config)
    elif warning := info.check_texts(data, config.data.get("init_args") or {}):
        rank_zero_only(print)(f"zoo: {warning}", file=sys.stderr)


def output_dir(config: Any, is_project_weights: bool) -> str:
    """The run's folder: as typed or configured, else the checkpoint's, else one named after the model.

    Args:
        config: the settings of the verb.
        is_project_weights: whether the checkpoint is named as zoo:NAME.
    """
    pattern = config.output_dir
    path = config.ckpt_path
    if path and not is_project_weights and not is_copy(path) and (pattern is None or "{time}" in pattern):
        return str(Path(config.ckpt_path).parent)
    if pattern is None:
        return f"runs/{config.model.class_path.rsplit('.', 1)[-1].lower()}"
    # Fill the data's label and the time into the pattern.
    label = data_label(config.data.init_args.get("data") or config.data.class_path.rsplit(".", 1)[-1].lower())
    return fill_in(pattern, label)


def refuse_contradictions(keys: Iterable[tuple[str, str]], settings: Mapping[str, Any], model: Any, path: str) -> None:
    """Raises UserError where a setting of the model on the command line differs from that of its initial weights.

    A config's settings are replaced by those of the weights.

    Args:
        keys: (dotted key, its source: a file, or "" for the command line).
        settings: those of the command for the model.
        model: the module with the weights, whose `hparams` are the settings in use.
        path: path of the weights.
    """
    for name, source in given_options(keys, "model").items():
        value, used = settings.get(name), model.hparams.get(name)
        if source or name in ("weights", "base") or None in (value, used) or not isinstance(value, int | float | str):
            continue
        if value != used:
            raise UserError(f"--model.{name} {value} contradicts the weights in {path}, which have {used}: drop it")


def record_used(settings: Any, model: Any) -> None:
    """Replace, in the settings that the run saves, those that the initial weights have replaced in the model.

    Args:
        settings: those of the command for the model.
        model: the module with the weights, whose `hparams` are the settings in use.
    """
    own = {"weights", "base", *model.data_arguments}
    for name, value in vars(settings).items():
        used = model.hparams.get(name)
        if name not in own and isinstance(used, int | float | str) and used != value:
            settings[name] = used


def set_log_folder(trainer: Any, folder: str) -> None:
    """Replace `{output_dir}`, which a logger without a folder is given, by the run's folder.

    Args:
        trainer: the Trainer's options.
        folder: folder of the run.
    """
    for logger in as_list(trainer.logger):
        arguments = getattr(logger, "init_args", None)
        if arguments is not None and arguments.get("save_dir") == RUN_FOLDER:
            arguments.save_dir = folder
