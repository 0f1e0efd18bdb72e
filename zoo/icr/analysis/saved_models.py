"""The checkpoints of a sweep, as its analyses read them."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zoo.errors import UserError
from zoo.icr.model import ICRegConfig
from zoo.icr.predict import load_model, read

if TYPE_CHECKING:
    from zoo.icr.module import ICRTransformer

SHARED = ("D", "K", "sigma2", "task_seed")  # what all models of a sweep have in common


class Saved(NamedTuple):
    """A model of the sweep after some steps of its training."""

    path: Path
    step: int
    config: ICRegConfig

    @property
    def task(self) -> dict[str, float]:
        return {name: getattr(self.config, name) for name in SHARED}

    def model(self) -> "ICRTransformer":
        """The model, on a GPU where there is one, its weights fixed."""
        return load_model(str(self.path)).requires_grad_(False)


def saved(folder: Path) -> list[Saved]:
    """The files checkpoints_M*/checkpoint_step_*.ckpt in a sweep's folder, by M ("inf" last) and step.

    Every one of them is opened, so that a long analysis does not end at a file that could have been refused at once.

    Raises:
        ValueError: there are none, one is damaged, or they are of different tasks.
    """
    found = []
    for path in sorted(folder.glob("checkpoints_M*/checkpoint_step_*.ckpt")):
        if step := re.fullmatch(r"checkpoint_step_(\d+)", path.stem):
            found.append(Saved(path, int(step[1]), read(path)[0]))
    if not found:
        raise UserError(f"{folder} holds no checkpoints_M*/checkpoint_step_*.ckpt: give the folder of a sweep")
    for other in found:
        if other.task != found[0].task:
            raise UserError(
                f"{found[0].path} has the task {found[0].task}, but {other.path} {other.task}: "
                "give each sweep a folder of its own"
            )
    return sorted(found, key=lambda one: (float(one.config.M), one.step))
