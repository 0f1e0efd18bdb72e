"""Arguments compared with those in a checkpoint: some a resumed run cannot change, of others a change is reported."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

from zoo.console.argument_names import print_notice
from zoo.errors import UserError


def field_names(config_class: type, *without: str) -> tuple[str, ...]:
    """The names of the fields of a dataclass, without some."""
    return tuple(field.name for field in fields(config_class) if field.name not in without)


def check_fixed(stored: Mapping[str, Any], current: Mapping[str, Any], names: Iterable[str], prefix: str) -> None:
    """Compare arguments of a resumed run with those of the run that wrote the checkpoint.

    Args:
        stored: the arguments in the checkpoint.
        current: the arguments now.
        names: those that must be equal; one that either side lacks is not compared.
        prefix: what precedes a name on the command line, "--model." or "--data.".

    Raises:
        UserError: an argument differs; the message contains its name and both values.
    """
    for name in names:
        if name in stored and name in current and _plain(stored[name]) != _plain(current[name]):
            raise UserError(
                f"{prefix}{name} is {_plain(current[name])!r} here and {_plain(stored[name])!r} in the checkpoint: a "
                "resumed run cannot change it. Set it to the checkpoint's value, or start a new run"
            )


def report_changed(stored: Mapping[str, Any], current: Mapping[str, Any], names: Iterable[str]) -> None:
    """Print a line for each argument of a model whose value differs from that in the checkpoint of its weights.

    Args:
        stored: the arguments in the checkpoint.
        current: the arguments now.
        names: those to compare; one that either side lacks is not compared.
    """
    for name in names:
        if name in stored and name in current and _plain(stored[name]) != _plain(current[name]):
            before, now = (_plain(arguments[name]) for arguments in (stored, current))
            print_notice(f"the model's setting {name} is {now!r}, but its weights were trained with {before!r}")


def _plain(value: Any) -> Any:
    """Tuples as lists, which checkpoints and configs do not distinguish."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
