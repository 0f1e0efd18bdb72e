"""The model and data classes of a command: registered by name, or the user's own by import path."""

import importlib
import os
import sys
from collections.abc import Mapping

from zoo.registry import DATA_MODULES, MODELS, load_class


class ClassNames:
    """The classes that a command names.

    Args:
        class_paths: all class names given for model and data in configs and on the command line, in order; the last one
            is used.
    """

    def __init__(self, class_paths: Mapping[str, list[str]]) -> None:
        self.named = class_paths
        self.loaded: dict[str, type] = {}  # name -> class

    @property
    def own(self) -> dict[str, str]:
        """Class name -> import path of the classes that are not registered: the user's own."""
        return {path.rsplit(".", 1)[-1]: path for paths in self.named.values() for path in paths if "." in path}

    def load(self, stored: Mapping[str, str]) -> dict[str, type | None]:
        """Import every named class, so that the parser knows it, and return the valid one for "model" and "data".

        Args:
            stored: the names in the checkpoint, which hold where the command names no class.
        """
        for name in [*stored.values(), *(name for names in self.named.values() for name in names)]:
            if cls := _import(name):
                self.loaded[name] = cls
        # Without a model (`zoo fit --help`, or a mistyped one) the parser shows all of them.
        for group, registered in (("model", MODELS), ("data", DATA_MODULES)):
            if not any(name in self.loaded for name in [*self.named[group], stored.get(group)]):
                self.loaded |= {name: load_class(name) for name in registered}
        valid = {group: (names or [stored.get(group, "")])[-1] for group, names in self.named.items()}
        return {group: self.loaded.get(name) for group, name in valid.items()}


def _import(name: str) -> type | None:
    """A class by its registered name or its import path; None if there is none, which the parser then reports."""
    if name in MODELS or name in DATA_MODULES:
        return load_class(name)
    module, _, attribute = name.rpartition(".")
    # The `zoo` script, unlike `python -m zoo`, does not look into the working directory. At the end, it hides nothing.
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        return None
