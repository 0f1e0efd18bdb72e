"""Names of the classes that the Trainer's options accept, for the messages about a name that does not exist."""

import inspect
from importlib import import_module
from typing import Any

from zoo import callbacks
from zoo.console.messages import did_you_mean
from zoo.private_apis.jsonargparse_api import load_yaml
from zoo.registry import DATA_MODULES, MODELS

KINDS = {  # option -> what it names, and the module of Lightning with its classes
    "trainer.logger": ("logger", "loggers"),
    "trainer.callbacks": ("callback", "callbacks"),
    "trainer.plugins": ("plugin", "plugins"),
    "trainer.strategy": ("strategy", "strategies"),
    "trainer.profiler": ("profiler", "profilers"),
    "trainer.accelerator": ("accelerator", "accelerators"),
}
BASES = ("Base", "Logger", "Callback", "Precision", "CheckpointIO", "Strategy", "Profiler", "Accelerator")  # no choices
MOST = 10  # names that a message lists
NONE = ("none", "no", "off")


def noun_of(option: str | None) -> str:
    """What an option names: "logger" of "trainer.logger", else "model or data class"."""
    return KINDS[option][0] if option in KINDS else "model or data class"


def class_names(option: str | None) -> list[str]:
    """The class names that an option accepts; those of models and data for all but the Trainer's options."""
    if option not in KINDS:
        return [*MODELS, *DATA_MODULES]
    noun, module = KINDS[option][0], import_module(f"lightning.pytorch.{KINDS[option][1]}")
    base = getattr(module, noun.capitalize(), object)  # LitLogger is listed as a logger, and is none of the Trainer's
    classes = {name: cls for name in module.__all__ if isinstance(cls := getattr(module, name), type)}
    names = [name for name, cls in classes.items() if issubclass(cls, base)] + own_names(option)
    return [name for name in names if name[0].isupper() and name not in BASES and not name.startswith("Base")]


def settings_of(option: str, path: str | None) -> list[str]:
    """The names of the settings of a class that one of the Trainer's options names by its import path."""
    if option not in KINDS or path is None:
        return []
    module, _, name = path.rpartition(".")
    return [*inspect.signature(getattr(import_module(module), name)).parameters]


def suggestion(option: str | None, name: str, short_names: tuple[str, ...] = ()) -> str:
    """The end of a sentence about a class name that does not exist: the nearest one, or the choices.

    Args:
        option: option that names the class, without dashes.
        name: the unknown name, also as an import path.
        short_names: other values that the option accepts, such as "ddp".
    """
    if option == "trainer.logger" and name.lower() in NONE:
        return ": set it to false for none"
    names = class_names(option)
    choices = short_names or names
    listed = f": it is one of {', '.join(choices)}" if option in KINDS and len(choices) <= MOST else ""
    hint = did_you_mean(name, [*short_names, *names], listed)
    # A name that Lightning and the zoo have needs an import path.
    for shared in {*own_names(option)} & {*import_module("lightning.pytorch.callbacks").__all__}:
        hint = hint.replace(f"mean {shared}?", f"mean {callbacks.__name__}.{shared}?")
    return hint


def own_names(option: str | None) -> list[str]:
    """The classes of the zoo that an option of the Trainer accepts."""
    return list(callbacks.__all__) if option == "trainer.callbacks" else []


def describe_text(option: str, text: str, short_names: tuple[str, ...]) -> str:
    """A sentence about a value that the parser has left as text: no class, or a class with wrong settings.

    Args:
        option: option that names the class, without dashes.
        text: its value.
        short_names: other values that the option accepts, such as "ddp".
    """
    noun, name = noun_of(option), text
    if text.lstrip().startswith("{"):
        spec: Any = load_yaml(text)
        name = str(spec.get("class_path")) if isinstance(spec, dict) else text
        if name.rpartition(".")[2] in class_names(option):
            return f"--{option}: the settings of {name} are none that it accepts: {text}"
    return f"--{option}: there is no {noun} {name!r}{suggestion(option, name, short_names)}"
