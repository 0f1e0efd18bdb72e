"""Settings that follow from the data, where neither a config nor an option gives them.

`automatic: true` in a config, or `--automatic` on the command line, lets the rules of the model's class choose them.
The values are printed with their reasons, and saved in the run's config.yaml, so that resuming needs no rules.
"""

import sys
from collections.abc import Iterable
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.cli.arguments import option_parts
from zoo.errors import UserError
from zoo.training.choices import Choice

GROUPS = ("model", "data")  # keys whose settings are constructor arguments of a class


def choose(
    config: Any, keys: Iterable[tuple[str, str]], model: Any, data: Any, seconds: float | None = None
) -> list[Choice]:
    """Choose the settings that were not given, and write them into the command's settings.

    Args:
        config: the settings of a verb, as the parser returns them.
        keys: (dotted key, its source) of all settings that were given.
        model: the model class.
        data: the data class.
        seconds: seconds that are left of --budget; None without a limit.

    Raises:
        UserError: the model does not define rules, or its data cannot be read.
    """
    rules = getattr(model, "choose_settings", None)
    if rules is None:
        raise UserError(f"--automatic: {model.__name__} has no rules for its settings: drop it")
    keys = list(keys)
    given = {key: value for key in _options(keys) if (value := _read(config, key)) is not _UNKNOWN}
    given.pop("budget", None)
    if seconds is not None:
        given["budget"] = seconds
    arguments = config.data.get("init_args") or {}
    typed = _options((key, source) for key, source in keys if not source)
    choices = [
        choice
        for choice in rules(data(**arguments), given)
        if choice.option not in given
        or (choice.replaces is not None and given[choice.option] == choice.replaces and choice.option not in typed)
    ]
    for choice in choices:
        _write(config, choice.option, choice.value)
    return choices


@rank_zero_only
def print_choices(choices: list[Choice]) -> None:
    """Print a line for each choice: the option, its value, the reason."""
    if not choices:
        return
    options = [f"--{choice.option} {_word(choice.value)}" for choice in choices]
    width = max(map(len, options))
    print("zoo: settings chosen from the data; an option on the command line replaces a choice", file=sys.stderr)
    for option, choice in zip(options, choices, strict=True):
        print(f"  {option:<{width}}  {choice.reason}", file=sys.stderr)


def _word(value: Any) -> str:
    """A value as it is written on the command line."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _options(keys: Iterable[tuple[str, str]]) -> list[str]:
    """Dotted keys as on the command line: "model.init_args.dim" is "model.dim"."""
    return list(dict.fromkeys(".".join(option_parts(key)) for key, _ in keys))


_UNKNOWN = object()


def _place(config: Any, option: str) -> tuple[Any, str]:
    """The namespace that holds an option, and the option's key in it."""
    group, _, name = option.partition(".")
    if group in GROUPS:
        return config[group].init_args, name
    return (config[group], name) if name else (config, group)


def _read(config: Any, option: str) -> Any:
    group, _, name = option.partition(".")
    if name in ("", "class_path") or group not in config:
        return _UNKNOWN
    place, key = _place(config, option)
    return place.get(key, _UNKNOWN)


def _write(config: Any, option: str, value: Any) -> None:
    place, key = _place(config, option)
    place[key] = value
