"""Names of a package that are imported at their first use, because their modules load Lightning or scikit-learn."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def imported_on_use(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A function for a package's `__getattr__`, which Python calls for names that the package does not define.

    Args:
        package: its name.
        modules: name -> the module that defines it.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return get
