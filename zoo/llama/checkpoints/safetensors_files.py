"""The weight files of a Hugging Face folder: model.safetensors, or the shards that an index names."""

import json
from pathlib import Path

from zoo.errors import UserError
from zoo.files import regular_file

LARGEST_INDEX = 2**26  # bytes


def weight_files(folder: Path) -> list[Path]:
    """The folder's weight files: model.safetensors, or else those that model.safetensors.index.json names.

    Raises:
        UserError: a file is missing, the index is damaged, or it names something other than files in the folder.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    # model.safetensors has precedence: an index next to it may be left over from an earlier, sharded model.
    names = {single.name} if single.exists() or not index.exists() else _shards(index)
    for name in sorted(names):
        is_inside = name.endswith(".safetensors") and "\0" not in name and Path(name).name == name
        shown = name if name.isprintable() else repr(name)
        if not is_inside or not (folder / name).exists():
            raise UserError(f"{folder} lacks its weights file {shown}: download it into the folder")
    return [regular_file(folder / name) for name in sorted(names)]


def _shards(index: Path) -> set[str]:
    """The names of the files in the index's "weight_map", {tensor: file}."""
    regular_file(index, max_bytes=LARGEST_INDEX)
    try:
        content = json.loads(index.read_bytes())
    except (ValueError, RecursionError):  # wrong JSON, wrong UTF-8, an integer of thousands of digits, deep nesting
        content = None
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"{index} is damaged: it has no weight_map from tensors to files; download it again")
    return set(shards.values())
