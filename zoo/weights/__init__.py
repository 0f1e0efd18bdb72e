"""Weights that come with the zoo: `zoo:NAME` in place of a file, for --ckpt_path and --model.weights."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from zoo.console.messages import did_you_mean
from zoo.errors import UserError
from zoo.files.remote_files import is_url, local_copy

FOLDER = Path(__file__).parent
PREFIX = "zoo:"


class ProjectWeights(NamedTuple):
    """A checkpoint of the project.

    Args:
        file: its name in this folder.
        sha256: of the file, 64 hex digits.
        command: that trained it.
        metric: name and value of what `zoo validate --ckpt_path zoo:NAME` logs.
        licence: of the weights.
    """

    file: str
    sha256: str
    command: str
    metric: tuple[str, float]
    licence: str = "Apache-2.0"


WEIGHTS: dict[str, ProjectWeights] = {
    "regress-lm": ProjectWeights(
        "regress-lm.ckpt",
        "7a9ea1082bf1f4c6f83f0bf2367af1aa5e568148b63da77fffbf436773f6268e",
        "zoo fit --config regress_lm_pretrain --budget 30min",
        ("val_loss", 0.9131),
    ),
}


def find_weights(path: str) -> str:
    """The path of a file or folder of weights, where `zoo:NAME` is a checkpoint of the project, and a URL is copied.

    Raises:
        UserError: the project has no weights of that name, or its file is missing or damaged.
    """
    if is_url(path):
        return str(local_copy(path, "--model.weights"))
    if not is_project_weights(path):
        return path
    name = path.removeprefix(PREFIX)
    if name not in WEIGHTS:
        known = [PREFIX + other for other in WEIGHTS]
        near = did_you_mean(path, known, f": its weights are {', '.join(known)}, or give a file")
        raise UserError(f"the zoo has no weights {path}{near}")
    file = FOLDER / WEIGHTS[name].file
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != WEIGHTS[name].sha256:
        raise UserError(f"{file} is missing or not as it was published: install the zoo again")
    return str(file)


def is_project_weights(path: str | None) -> bool:
    """Whether a path is `zoo:NAME`."""
    return path is not None and path.startswith(PREFIX)
