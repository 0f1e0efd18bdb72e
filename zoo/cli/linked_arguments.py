"""Constructor arguments of a model that the command line takes from attributes of the data module.

A model class names them in `data_arguments`. They cannot be given by hand, and the data must have those without which
the model cannot be built.
"""

import inspect
from collections.abc import Iterable
from typing import Any

from zoo.cli.arguments import option_parts
from zoo.private_apis.jsonargparse_api import class_options
from zoo.registry import DATA_MODULES, load_class


def linked_arguments(model: type | None) -> tuple[str, ...]:
    """The names of the arguments that a model class takes from the data."""
    return tuple(getattr(model, "data_arguments", ()))


def given_options(keys: Iterable[tuple[str, str]], group: str) -> dict[str, str]:
    """The names of the options of "model" or "data" that were given by hand, each with its source.

    Args:
        keys: (dotted key, its source: a file, or "" for the command line).
        group: "model" or "data".
    """
    given = {}
    for key, source in keys:
        first, *rest = option_parts(key)
        if first == group and rest:
            given[rest[0]] = source
    return given


def follows_model(keys: Iterable[tuple[str, str]], name: str) -> bool:
    """Whether a setting of the data may be set to what follows from the model's: it was not given.

    The tokenizer of weights that are named on the command line also replaces that of a config.

    Args:
        keys: (dotted key, its source: a file, or "" for the command line).
        name: name of the setting.
    """
    keys = list(keys)
    given = given_options(keys, "data")
    names_weights = given_options(keys, "model").get("weights") == ""
    return name not in given or (name == "tokenizer" and names_weights and given[name] != "")


def find_linked(keys: Iterable[tuple[str, str]], model: type | None, data: type | None) -> str | None:
    """A sentence about the first linked argument that was given by hand; None if there is none.

    Args:
        keys: (dotted key, its source: a file, or "" for the command line).
        model: the model class.
        data: the data class.
    """
    linked = linked_arguments(model)
    for name, source in given_options(keys, "model").items():
        if name not in linked:
            continue
        dashes, where = ("", f"{source}: ") if source else ("--", "")
        names = {option.name for option in class_options(data)} if data else set()
        hint = f", and set {dashes}data.{name} instead" if f"--{name}" in names else ""
        return f"{where}{dashes}model.{name} is taken from the data: drop it{hint}"
    return None


def find_missing(model: type, data: Any, error: BaseException) -> str | None:
    """A sentence about a linked argument that the data lacks, if that is why the model could not be built.

    Args:
        model: the model class.
        data: the data module.
        error: what the model's constructor raised.
    """
    parameters = inspect.signature(model).parameters
    for name in linked_arguments(model):
        is_there = hasattr(type(data), name) or name in vars(data)
        is_required = name in parameters and parameters[name].default is inspect.Parameter.empty
        if is_there or not (is_required or name in str(error)):
            continue
        others = [other for other in DATA_MODULES if hasattr(load_class(other), name)]
        advice = (
            f"give --data {', '.join(others[:-1])}{' or ' * (len(others) > 1)}{others[-1]}"
            if others
            else "give another --data"
        )
        return f"{type(data).__name__} has no {name}, which {model.__name__} needs: {advice}"
    return None
