"""Packages that Lightning imports but few runs need, loaded at their first use: the tracer of torch.compile
(torch._dynamo), torchmetrics' functions, which import transformers and scipy.signal, and its plots (matplotlib).

`defer_imports` is for a process that runs a command of the zoo; importing `zoo` or one of its packages defers nothing.
A deferred package is an empty module at first. Its shortcuts (`torchmetrics.Metric`) are loaded alone; any other
attribute loads the package, and so does a submodule of torch._dynamo.

Written for torch 2.13, lightning 2.6 and torchmetrics 1.9.
"""

import logging
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

DYNAMO = "torch._dynamo"
PLOT = "torchmetrics.utilities.plot"
ABOUT = ("__version__", "__author__", "__author_email__", "__license__", "__copyright__", "__homepage__", "__docs__")
_LOADING = threading.RLock()


def defer_imports() -> None:
    """Defer the packages of `SHORTCUTS` that this process has not imported yet."""
    if not any(isinstance(finder, _DeferredFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _DeferredFinder())


class DeferredPackage(ModuleType):
    """A package whose code runs at the first access to an attribute that is not a shortcut."""

    def __getattr__(self, name: str) -> Any:
        if shortcut := SHORTCUTS[self.__name__].get(name):
            return shortcut()
        if name.startswith("__") and name != "__all__":
            # Programs that look at every module, such as `inspect.getmodule`, load nothing.
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(load(self.__name__), name)

    def __dir__(self) -> list[str]:
        return dir(load(self.__name__))


def is_deferred(name: str) -> bool:
    """Whether the package is deferred and has not been loaded since."""
    return isinstance(sys.modules.get(name), DeferredPackage)


def load(name: str) -> ModuleType:
    """The package, after its code has run."""
    with _LOADING:
        package = import_module(name)
        if is_deferred(name):
            assert package.__spec__
            assert package.__spec__.loader
            package.__class__ = ModuleType  # the package's own imports get the attributes that it has so far
            try:
                package.__spec__.loader.exec_module(package)
            except BaseException:
                package.__class__ = DeferredPackage
                raise
        return package


class _DeferredFinder(MetaPathFinder):
    """Finds the packages of `SHORTCUTS`, and loads torch._dynamo before its first submodule, as these need it all."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in SHORTCUTS and (spec := PathFinder.find_spec(name, path)) and spec.loader:
            spec.loader = _DeferringLoader(spec.loader)
            return spec
        if name.startswith(f"{DYNAMO}.") and is_deferred(DYNAMO):
            load(DYNAMO)
            if module := sys.modules.get(name):
                # The package has imported the submodule, which must not run twice: importlib takes its __spec__.
                # Set in the module's dict: torch's modules of settings take no other attributes.
                spec = vars(module)["__spec__"] = ModuleSpec(name, _ImportedLoader(module))
                return spec
        return None


class _DeferringLoader(Loader):
    """Makes a `DeferredPackage`."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__
        module.__spec__.loader = module.__loader__ = self.loader
        module.__class__ = DeferredPackage
        if module.__name__ == "torchmetrics":
            # Its modules `metric` and `utilities` import each other, which works in this order only.
            import_module("torchmetrics.utilities")


class _ImportedLoader(Loader):
    """Returns a module that has been imported."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self.spec


class _AnyOptimizedModule(type):
    """Metaclass: instances are those of torch._dynamo.OptimizedModule, of which there are none before it is loaded."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return not is_deferred(DYNAMO) and isinstance(instance, sys.modules[DYNAMO].OptimizedModule)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return not is_deferred(DYNAMO) and issubclass(subclass, sys.modules[DYNAMO].OptimizedModule)


class OptimizedModule(metaclass=_AnyOptimizedModule):
    """Replacement of torch._dynamo.OptimizedModule in `isinstance` and `issubclass`."""


def disable(function: Callable[..., Any], *options: Any, **more_options: Any) -> Callable[..., Any]:
    """`torch._dynamo.disable` of the function; the function itself as long as nothing can be compiled.

    torch calls it for methods of optimizers at their first use.
    """
    disabled: list[Callable[..., Any]] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        if is_deferred(DYNAMO):
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(sys.modules[DYNAMO].disable(function, *options, **more_options))
        return disabled[0](*args, **kwargs)

    return call


def _attribute(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def _function(module: str, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(load(module), name)(*args, **kwargs)

    return call


SHORTCUTS: dict[str, dict[str, Callable[[], Any]]] = {  # deferred package -> attribute -> how to get it alone
    "torchmetrics": {
        **{name: partial(_attribute, "torchmetrics.__about__", name) for name in ABOUT},
        "_logger": partial(logging.getLogger, "torchmetrics"),
        "Metric": partial(_attribute, "torchmetrics.metric", "Metric"),
        "MetricCollection": partial(_attribute, "torchmetrics.collections", "MetricCollection"),
    },
    "torchmetrics.functional": {},
    PLOT: {
        **dict.fromkeys(("_AX_TYPE", "_CMAP_TYPE", "_PLOT_OUT_TYPE"), lambda: Any),  # for annotations
        **{
            name: partial(_function, PLOT, name)
            for name in ("plot_confusion_matrix", "plot_curve", "plot_single_or_multi_val")
        },
    },
    DYNAMO: {"disable": lambda: disable, "OptimizedModule": lambda: OptimizedModule},
}
