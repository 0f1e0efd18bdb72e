"""Combined settings: one dataclass that inherits from a model's config and from OptimizerConfig.

`class LlamaSettings(OptimizerConfig, LlamaConfig)` lets a module accept all fields of both as keyword arguments, and
the command line shows each with its default and documentation, without repeating them.
"""

from dataclasses import fields
from typing import Any, TypeVar

Config = TypeVar("Config")


def part(settings: Any, config_class: type[Config]) -> Config:
    """The fields of `config_class` in combined settings, as a `config_class`."""
    names = [field.name for field in fields(config_class)]  # type: ignore[arg-type]
    return config_class(**{name: getattr(settings, name) for name in names})
