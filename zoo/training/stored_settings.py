"""Checks of a module's settings in a checkpoint, before its constructor is called with them."""

import sys
from collections.abc import Collection, Mapping
from numbers import Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from zoo.errors import UserError
from zoo.private_apis.jsonargparse_api import constructor_types


def check_stored_settings(cls: type, settings: Mapping[str, Any], path: str | Path) -> type:
    """Compare the settings in a checkpoint with the constructor's arguments: names and types.

    Args:
        cls: the class that is to be built, or a base class of it.
        settings: its arguments; names that start with an underscore belong to Lightning.
        path: the checkpoint, for messages.

    Returns:
        The class to build: `cls`, or the subclass of it that the checkpoint names.

    Raises:
        UserError: the checkpoint is of another class, or a setting is missing, unknown or of the wrong type.
    """
    # The class of the checkpoint may be a subclass that is imported already. A file never decides what is imported.
    stored = settings.get("_class_path")
    module, _, name = str(stored).rpartition(".")
    built = cls if name in ("None", cls.__name__) else vars(sys.modules.get(module, object)).get(name)
    if not (isinstance(built, type) and issubclass(built, cls)):
        raise UserError(f"{path} is not a checkpoint of {cls.__name__}, but of {stored!r}: load it with its own class")
    arguments = {name: value for name, value in settings.items() if not name.startswith("_")}
    if reason := _wrong_argument(built, arguments, skip=getattr(cls, "renamed_arguments", ())):
        raise UserError(f"{path} does not hold the settings of a {cls.__name__}: {reason}; give another checkpoint")
    return built


def _wrong_argument(cls: type, arguments: Mapping[str, Any], skip: Collection[str]) -> str | None:
    """What is wrong with the arguments of a class, apart from those in `skip`; None if names and types fit."""
    types = constructor_types(cls)
    for name, value in arguments.items():
        if name not in skip and name not in types:
            return f"there is no setting {name!r}"
        if name in types and not _fits(value, types[name][0]):
            shown = repr(value) if len(repr(value)) <= 40 else f"a {type(value).__name__}"
            return f"{name} is {shown}, which is not of the right type"
    missing = [name for name, (_, is_required) in types.items() if is_required and name not in arguments]
    return f"the setting {missing[0]!r} is missing" if missing else None


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value from a file has the annotated type. A list may be stored as a tuple, a float as an integer."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in arguments)
    if annotation in (None, NoneType):
        return value is None
    if annotation is int:
        is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return is_whole and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if origin in (list, tuple):
        of = arguments[0] if arguments else Any
        return isinstance(value, list | tuple) and all(_fits(item, of) for item in value)
    kind = origin or annotation
    return isinstance(value, kind) if isinstance(kind, type) else True
