"""Weights by name: `zoo:NAME` in place of a file, for --ckpt_path, --model.weights and --data.tokenizer.

NAME is one of the checkpoints that come with the zoo, or weights that `zoo pull` has downloaded.
"""

import hashlib
from pathlib import Path
from typing import Any

from zoo.console.messages import did_you_mean
from zoo.errors import UserError
from zoo.files.remote_files import copy_with_neighbours, is_url
from zoo.weights.downloads import downloaded, downloads, is_repository
from zoo.weights.table import PUBLIC, WEIGHTS, ProjectWeights

FOLDER = Path(__file__).parent
PREFIX = "zoo:"

__all__ = [
    "FOLDER",
    "PREFIX",
    "WEIGHTS",
    "ProjectWeights",
    "find_weights",
    "is_project_weights",
    "resolve_name",
    "weights_rows",
]


def find_weights(path: str) -> str:
    """The path of a file or folder of weights: `zoo:NAME` is one of the project or a download; a URL is copied.

    Raises:
        UserError: the name is unknown, the weights are not downloaded, or a file is missing or damaged.
    """
    if is_url(path):
        return str(copy_with_neighbours(path, "--model.weights"))
    if not is_project_weights(path):
        return path
    name = path.removeprefix(PREFIX)
    if name not in WEIGHTS:
        if (entry := downloaded(name)) is not None:
            return str(entry)
        if name in PUBLIC or is_repository(name):
            raise UserError(f"{path} is not downloaded: run `zoo pull {name}` first")
        known = [PREFIX + other for other in (*WEIGHTS, *PUBLIC)]
        choices = f": give {', '.join(known)}, or a file"
        if not name.strip():
            raise UserError(f"{path} names no weights{choices}")
        raise UserError(f"the zoo has no weights {path}{did_you_mean(path, known, choices)}")
    file = FOLDER / WEIGHTS[name].file
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != WEIGHTS[name].sha256:
        raise UserError(f"{file} is missing or not as it was published: install the zoo again")
    return str(file)


def resolve_name(path: Any) -> Any:
    """The path of the weights that `zoo:NAME` names; anything else, such as an open file, is returned unchanged.

    Raises:
        UserError: as `find_weights`.
    """
    return find_weights(str(path)) if isinstance(path, str | Path) and is_project_weights(str(path)) else path


def is_project_weights(path: str | None) -> bool:
    """Whether a path is `zoo:NAME`."""
    return path is not None and path.startswith(PREFIX)


def weights_rows() -> list[dict[str, str]]:
    """One row for each `zoo:NAME`: those that come with the zoo, public ones, and other downloads."""
    rows = []
    for name, entry in WEIGHTS.items():
        rows.append(
            {
                "name": PREFIX + name,
                "model": entry.model,
                "MB": f"{(FOLDER / entry.file).stat().st_size / 1e6:.1f}",
                "trained on": entry.data,
                "validation metric": f"{entry.metric[0]} {entry.metric[1]:.4g}",
                "baseline": entry.baseline,
                "licence": entry.licence,
                "zoo export --format": entry.formats,
            }
        )
    others = {name: f"{public.megabytes:.1f}" for name, public in PUBLIC.items()}
    others |= {name: f"{n_bytes / 1e6:.1f}" for name, n_bytes in downloads().items()}
    for name, megabytes in others.items():
        about = PUBLIC.get(name)
        is_here = name in downloads()
        rows.append(
            {
                "name": PREFIX + name,
                "model": "LlamaLM" if about else "",
                "MB": megabytes,
                "trained on": about.data if about else "",
                "validation metric": "downloaded" if is_here else f"needs: zoo pull {name}",
                "baseline": "",
                "licence": about.licence if about else "",
                "zoo export --format": about.formats if about else "",
            }
        )
    return rows
