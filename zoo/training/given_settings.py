"""Settings that are given to a model's `from_data`: checks of their names, and settings of the data that follow."""

from collections.abc import Iterable, Mapping
from typing import Any

from zoo.console.messages import did_you_mean
from zoo.errors import UserError, refuse_renamed
from zoo.private_apis.jsonargparse_api import constructor_types


def check_argument_names(cls: type, names: Iterable[str]) -> None:
    """Raises UserError if a name is not an argument of a class, or the argument follows from the data."""
    names = list(names)
    known, from_data = constructor_types(cls) if names else {}, getattr(cls, "data_arguments", ())
    for name in names:
        if name in getattr(cls, "renamed_arguments", ()):
            refuse_renamed(cls, [name])
        if name in from_data:
            raise UserError(f"{name} follows from the data: drop it, and give it to the data module if it takes it")
        if name not in known:
            others = [other for other in known if other not in from_data]
            raise UserError(f"{cls.__name__} has no argument {name!r}{did_you_mean(name, others, ': drop it')}")


def settings_of_model(cls: Any, data: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the data that follow from the model's, by option ("data.tokenizer"), without those that are given.

    Args:
        cls: the class of the model.
        data: a data module.
        settings: arguments of the model.
    """
    given, known = getattr(data, "given_arguments", ()), getattr(data, "hparams", {})
    followed = cls.data_settings(settings)
    return {f"data.{name}": value for name, value in followed.items() if name in known and name not in given}
