"""In-context linear regression: the task, its exact estimators and the transformer that learns it.

`ICRTransformer` is imported on first use, because it needs Lightning.
"""

from typing import TYPE_CHECKING, Any

from zoo.icr.model import ICRegConfig
from zoo.icr.predict import evaluate_ood_score, load_model, predict_from_prompt
from zoo.icr.references import dmmse, gradient_step, least_squares, ridge
from zoo.icr.task import Prompts, Task

if TYPE_CHECKING:
    from zoo.icr.module import ICRTransformer

__all__ = [
    "ICRTransformer", "ICRegConfig", "Prompts", "Task", "dmmse", "evaluate_ood_score", "gradient_step",
    "least_squares", "load_model", "predict_from_prompt", "ridge",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "ICRTransformer":
        from zoo.icr.module import ICRTransformer

        return ICRTransformer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
