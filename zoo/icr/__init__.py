"""In-context linear regression: the task, its exact estimators and the transformer that learns it.

`ICRTransformer` and `load_model` are imported on first use, because they need Lightning.
"""

from typing import TYPE_CHECKING

from zoo.icr.model import ICRegConfig
from zoo.icr.predict import evaluate_ood_score, predict_from_prompt
from zoo.icr.references import dmmse, gradient_step, least_squares, ridge
from zoo.icr.task import Prompts, Task
from zoo.registry import imported_on_use

if TYPE_CHECKING:
    from zoo.icr.module import ICRTransformer
    from zoo.icr.saved_model import load_model

__all__ = [
    "ICRTransformer", "ICRegConfig", "Prompts", "Task", "dmmse", "evaluate_ood_score", "gradient_step",
    "least_squares", "load_model", "predict_from_prompt", "ridge",
]  # fmt: skip

__getattr__ = imported_on_use(__name__, {"ICRTransformer": "zoo.icr.module", "load_model": "zoo.icr.saved_model"})
