"""Checkpoints as a folder of two files: `model.safetensors` with the tensors and `zoo.json` with everything else.

No pickle is involved, so that other programs and languages can read both files. JSON lacks tuples, NaN and keys
that are not texts: objects with one of the keys in `_TAGS` encode them, and tensors outside the state dict.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from zoo.errors import UserError
from zoo.files.digest import KEY, add_digest, verify_digest
from zoo.files.regular_files import regular_file
from zoo.files.safetensors_files import read_safetensors
from zoo.files.safetensors_names import CONTENT, TENSORS
from zoo.text_formats.json_text import describe_json_error, parse_object

LARGEST_CONTENT = 2**28  # bytes; a tokenizer of a million tokens has 2**26
_VERSION = 1  # of the folder's format
_STATE = "state_dict"
_OTHER = "checkpoint:"  # starts the names of tensors outside the state dict
_TAGS = ("__tuple__", "__float__", "__tensor__", "__items__")


def is_safetensors_checkpoint(path: Any) -> bool:
    """Whether it is a folder written by `write_safetensors_checkpoint`."""
    return isinstance(path, str | Path) and (Path(path) / CONTENT).is_file()


def write_safetensors_checkpoint(checkpoint: Mapping[str, Any], folder: Path) -> None:
    """Write a checkpoint with its digest into an existing folder.

    Args:
        checkpoint: nested dictionaries, lists and tuples of texts, numbers, None and tensors.
        folder: an empty folder.

    Raises:
        UserError: it holds a value of another type.
    """
    tensors = dict(sorted(checkpoint[_STATE].items()))  # the order in which they are read again
    content = {name: value for name, value in checkpoint.items() if name != _STATE}
    content[KEY] = add_digest({_STATE: dict(tensors)} | content)[KEY]
    encoded = _encoded(content, "", tensors)
    # Tensors that share memory, as tied embeddings do, are stored once for each name.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_file(copies, folder / TENSORS, {"format": "pt"})
    text = json.dumps({"version": _VERSION, "checkpoint": encoded}, indent=1, allow_nan=False)
    (folder / CONTENT).write_text(text + "\n", encoding="utf-8")


def read_safetensors_checkpoint(folder: str | Path) -> dict[str, Any]:
    """The checkpoint in a folder, its tensors on the CPU. Its content is compared with the digest in it.

    Raises:
        UserError: a file is missing or damaged, or the digest differs.
    """
    folder = Path(folder)
    content = read_content(folder)
    if not (folder / TENSORS).is_file():
        raise UserError(f"{folder} is an incomplete copy of a checkpoint folder, without {TENSORS}: copy it again")
    stored = read_safetensors(folder / TENSORS)
    state = {name: stored[name] for name in sorted(stored) if not name.startswith(_OTHER)}
    try:
        decoded = _decoded(content, stored)
    except _DamagedError:
        raise damaged(folder, "a value in it does not have the structure of a checkpoint's") from None
    checkpoint = {_STATE: state} | decoded
    verify_digest(checkpoint, folder / TENSORS)
    return checkpoint


def read_content(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's `zoo.json`, without its tensors.

    Raises:
        UserError: the file is damaged, or was written by a newer version of the zoo.
    """
    file = regular_file(folder / CONTENT, max_bytes=LARGEST_CONTENT)
    try:
        document = parse_object(file.read_bytes())
    except ValueError as error:
        raise damaged(folder, describe_json_error(error)) from None
    if type(document.get("version")) is int and document["version"] > _VERSION:
        raise UserError(f"{file} was written by a newer version of the zoo: update it")
    content = document.get("checkpoint")
    if document.get("version") != _VERSION or not isinstance(content, dict) or _STATE in content:
        raise damaged(folder, "it holds no checkpoint")
    return content


def damaged(folder: Path, reason: str) -> UserError:
    """The error for a folder that cannot be read."""
    return UserError(f"{folder / CONTENT} is damaged ({reason}): copy or export it again")


class _DamagedError(Exception):
    """A value in `zoo.json` has the wrong structure."""


def _encoded(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON has it; tensors in it are added to `tensors`."""
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"__float__": repr(value)}
    if isinstance(value, Tensor):
        tensors[_OTHER + place] = value
        return {"__tensor__": _OTHER + place}
    if isinstance(value, list | tuple):
        items = [_encoded(item, f"{place}/{i}", tensors) for i, item in enumerate(value)]
        return {"__tuple__": items} if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        pairs = [(key, _encoded(item, f"{place}/{key}".lstrip("/"), tensors)) for key, item in value.items()]
        if all(isinstance(key, str) and key not in _TAGS for key in value):
            return dict(pairs)
        return {"__items__": [[_encoded(key, place, tensors), item] for key, item in pairs]}
    raise UserError(f"the checkpoint's entry {place} is a {type(value).__name__}, which zoo.json cannot hold")


def _decoded(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `_encoded` has written."""
    if isinstance(value, list):
        return [_decoded(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if not any(key in _TAGS for key in value):
        return {key: _decoded(item, tensors) for key, item in value.items()}
    match value if len(value) == 1 else None:
        case {"__tuple__": [*items]}:
            return tuple(_decoded(item, tensors) for item in items)
        case {"__float__": "nan" | "inf" | "-inf" as text}:
            return float(text)
        case {"__tensor__": str(name)} if name.startswith(_OTHER) and name in tensors:
            return tensors[name]
        case {"__items__": [*pairs]} if all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            keys = [_decoded(key, tensors) for key, _ in pairs]
            if all(isinstance(key, str | int | float | None) for key in keys):
                return {key: _decoded(item, tensors) for key, (_, item) in zip(keys, pairs, strict=True)}
    raise _DamagedError
