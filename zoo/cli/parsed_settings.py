"""Checks and changes of a verb's settings after they are parsed and before anything is built."""

from typing import Any

from zoo.callbacks.budget import parse_duration
from zoo.cli.checkpoint_info import CheckpointInfo
from zoo.errors import UserError


def check_settings(config: Any, verb: str, info: CheckpointInfo | None) -> None:
    """Refuse settings that the types of options cannot express.

    Args:
        config: the settings of a verb, as the parser returns them.
        verb: the verb.
        info: the checkpoint that was named, if any.

    Raises:
        UserError: the seed is out of range, a verb other than fit has no trained model or a time limit, or the time
            limit is no duration.
    """
    if isinstance(seed := config.seed_everything, int) and not 0 <= seed < 2**32:
        raise UserError(f"--seed_everything must be from 0 to {2**32 - 1}, not {seed}")
    if verb != "fit" and not info and not config.model.init_args.get("weights"):
        raise UserError(f"zoo {verb} needs a trained model: add --ckpt_path FILE")
    if config.budget is not None:
        if verb != "fit":
            raise UserError(f"--budget is a time limit of fit: drop it for {verb}")
        parse_duration(config.budget)


def move_data_dir(config: Any) -> None:
    """Replace the config's data by --data_dir, so that a saved config has one place for it.

    Raises:
        UserError: the data module reads no data, or the name of the data is empty.
    """
    if config.data_dir is not None:
        if "data" not in config.data.init_args:
            raise UserError(f"{config.data.class_path} draws its own data and reads none: drop --data_dir")
        config.data.init_args.data, config.data_dir = config.data_dir, None
    if isinstance(data := config.data.init_args.get("data"), str) and not data.strip():
        raise UserError("--data_dir is empty: give a file, a folder or the name of a data set")
