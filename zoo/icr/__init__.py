"""In-context linear regression: the task, its exact references, and (lazily, for it needs Lightning) its module."""

from typing import TYPE_CHECKING, Any

from zoo.icr.model import ICRegConfig
from zoo.icr.predict import evaluate_ood_score, load_model, predict_from_prompt
from zoo.icr.references import dmmse, gradient_step, least_squares, ridge
from zoo.icr.task import Task

if TYPE_CHECKING:
    from zoo.icr.module import ICRTransformer

__all__ = [
    "ICRTransformer", "ICRegConfig", "Task", "dmmse", "evaluate_ood_score", "gradient_step", "least_squares",
    "load_model", "predict_from_prompt", "ridge",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "ICRTransformer":
        from zoo.icr.module import ICRTransformer

        return ICRTransformer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
