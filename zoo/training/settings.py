"""Combined settings: one dataclass that inherits from a model's config and from OptimizerConfig.

`class LlamaSettings(OptimizerConfig, LlamaConfig)` lets a module accept all fields of both as keyword arguments, and
the command line shows each with its default and documentation, without repeating them.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from zoo.errors import UserError

Config = TypeVar("Config")


def part(settings: Any, config_class: type[Config]) -> Config:
    """The fields of `config_class` in combined settings, as a `config_class`."""
    names = [field.name for field in fields(config_class)]  # type: ignore[arg-type]
    return config_class(**{name: getattr(settings, name) for name in names})


def refuse_derived(settings: Mapping[str, Any], **sources: str) -> None:
    """Refuse settings that a module computes from others.

    Args:
        settings: the keyword arguments of a module.
        **sources: name of a computed setting -> the arguments from which it is computed.

    Raises:
        UserError: one of them is in `settings`.
    """
    for name, source in sources.items():
        if name in settings:
            raise UserError(f"{name} cannot be given, because it is computed from {source}: drop it")
