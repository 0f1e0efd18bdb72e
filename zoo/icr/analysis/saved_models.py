"""The checkpoints in a sweep's folder that the analyses read."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo.errors import UserError
from zoo.icr.model import ICRegConfig
from zoo.icr.saved_model import load_model, read_config

if TYPE_CHECKING:
    from zoo.icr.module import ICRTransformer

TASK_FIELDS = ("D", "K", "sigma2", "task_seed")  # equal for all models of a sweep


class SavedModel(NamedTuple):
    """The checkpoint of a model after `step` training steps."""

    path: Path
    step: int
    config: ICRegConfig

    @property
    def task(self) -> dict[str, float]:
        """The settings of the task that all models of a sweep share."""
        return {name: getattr(self.config, name) for name in TASK_FIELDS}

    def model(self) -> "ICRTransformer":
        """Load the model, without gradients, on a GPU if there is one."""
        return load_model(self.path).requires_grad_(False)


def find_models(folder: Path) -> list[SavedModel]:
    """The files checkpoints_M*/checkpoint_step_*.ckpt in a sweep's folder, sorted by M ("inf" last) and step.

    Each file is read once here, so that a damaged one is refused before a long analysis starts.

    Raises:
        UserError: there are none, one is damaged, or they have different tasks.
    """
    models = []
    for path in sorted(folder.glob("checkpoints_M*/checkpoint_step_*.ckpt")):
        if step := re.fullmatch(r"checkpoint_step_(\d+)", path.stem):
            models.append(SavedModel(path, int(step[1]), read_config(path)))
    if not models:
        raise UserError(f"{folder} holds no checkpoints_M*/checkpoint_step_*.ckpt: give the folder of a sweep")
    for other in models:
        if other.task != models[0].task:
            raise UserError(
                f"{models[0].path} has the task {models[0].task}, but {other.path} {other.task}: "
                "give each sweep a separate folder"
            )
    return sorted(models, key=lambda model: (float(model.config.M), model.step))
