"""The table of models and data modules: the name that configs and checkpoints use -> the class.

Help, `zoo list`, the command line, the demo and the shared tests read this table. Adding a model means adding a line.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from zoo.errors import UserError

MODELS: Mapping[str, str] = {
    "LlamaLM": "zoo.llama.module.LlamaLM",
    "LlamaClassifier": "zoo.llama.classifier.LlamaClassifier",
    "LlamaZeroShot": "zoo.llama.zero_shot.LlamaZeroShot",
    "RegressLM": "zoo.regress_lm.api.RegressLM",
    "MiniRLM": "zoo.mini_rlm.module.MiniRLM",
    "ICRTransformer": "zoo.icr.module.ICRTransformer",
    "RevDEQLM": "zoo.revdeq.module.RevDEQLM",
}
DATA_MODULES: Mapping[str, str] = {
    "TextLM": "zoo.datamodules.text_lm.TextLM",
    "Reviews": "zoo.datamodules.reviews.Reviews",
    "TextRegression": "zoo.datamodules.text_regression.TextRegression",
    "SyntheticConfigs": "zoo.datamodules.synthetic_configs.SyntheticConfigs",
    "SyntheticTables": "zoo.datamodules.synthetic_tables.SyntheticTables",
    "LinearRegressionTasks": "zoo.datamodules.linear_regression_tasks.LinearRegressionTasks",
}


def load_class(name: str) -> type:
    """The class registered under `name`. A name that is not registered is never imported.

    Raises:
        UserError: `name` is in neither table.
    """
    table: dict[str, str] = {**MODELS, **DATA_MODULES}
    if name not in table:
        raise UserError(f"there is no model or data class {name!r}: the registered ones are {', '.join(table)}")
    module, _, attribute = table[name].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def load_all() -> dict[str, type]:
    """Every registered class by its name."""
    return {name: load_class(name) for name in (*MODELS, *DATA_MODULES)}


def registered_name(of: Any) -> str:
    """The name under which a class or the class of an object is known: its own name, registered or not."""
    return (of if isinstance(of, type) else type(of)).__name__


def imported_on_use(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that imports some names at their first use, because these load Lightning.

    Args:
        package: its name.
        modules: name -> the module that defines it.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(modules[name]), name)

    return get
