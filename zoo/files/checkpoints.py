"""Checkpoints of Lightning and of the zoo: read with checks of structure and digest, written with a digest."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from zoo.errors import UserError
from zoo.files.atomic import replacing
from zoo.files.checkpoint_folders import has_shards, is_checkpoint_folder, read_folder, write_folder
from zoo.files.digest import add_digest
from zoo.files.safetensors_checkpoints import is_safetensors_checkpoint, read_safetensors_checkpoint
from zoo.files.torch_files import read_torch_file


def read_checkpoint(
    path: str | Path,
    *,
    required: tuple[str, ...] = (),
    mmap: bool = True,
    map_location: Any = "cpu",
) -> dict[str, Any]:
    """The dictionary in a file by torch.save. The entries that Lightning and the zoo write have the right types.

    The content is compared with the digest in it, unless the environment variable ZOO_VERIFY is 0.

    Args:
        path: the file; or the folder that a sharded run wrote, whose tensors are put together in memory; or the
            folder that `zoo export --format safetensors` wrote.
        required: entries that the checkpoint must have.
        mmap: leave the tensors on the disk until they are used.
        map_location: device of the tensors, as in torch.load.

    Raises:
        FileNotFoundError: `path` does not exist.
        UserError: it is not a checkpoint, is damaged, or holds more than tensors and plain values.
    """
    if is_checkpoint_folder(path):
        checkpoint = read_folder(path)
    elif is_safetensors_checkpoint(path):
        checkpoint = read_safetensors_checkpoint(path)
    else:
        checkpoint = read_torch_file(path, mmap=mmap, map_location=map_location)
    check_structure(checkpoint, path, required)
    return checkpoint


def check_structure(checkpoint: Any, path: str | Path, required: tuple[str, ...] = ()) -> None:
    """Raises UserError if the content of a file does not have the structure of a checkpoint.

    Args:
        checkpoint: the content.
        path: the file, for messages.
        required: entries that it must have.
    """
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint: give one that `zoo fit` wrote")
    for name in required:
        if name not in checkpoint:
            raise UserError(f"{path} has no {name}, so it is not a checkpoint of `zoo fit`: give another file")
    for name, value in checkpoint.items():
        if name in _KINDS and not _KINDS[name](value):
            raise UserError(f"{path} is damaged: its entry {name} does not have the structure of a checkpoint's")


def available_device(storage: Any, location: str) -> Any:
    """`map_location` for torch.load: the device on which a tensor was saved if there is one here, else the CPU."""
    device = location.partition(":")[0]
    is_missing = (device == "cuda" and not torch.cuda.is_available()) or (
        device == "mps" and not torch.backends.mps.is_available()
    )
    return storage if is_missing or device == "meta" else None


def is_remote(path: Any) -> bool:
    """Whether it is an open file or a URL, which only Lightning reads, rather than the path of a file."""
    return hasattr(path, "read") or "://" in str(path)


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Write a checkpoint with its digest; an existing file is replaced when the new one is complete."""
    with replacing(Path(path), durable=True) as partial:
        torch.save(add_digest(checkpoint), partial)


class DigestCheckpointIO(TorchCheckpointIO):
    """Lightning's writer and reader of checkpoints, which adds a digest of the content and verifies it.

    A checkpoint with sharded tensors becomes a folder: all processes must then call `save_checkpoint`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if has_shards(checkpoint):
            write_folder(checkpoint, Path(path))
            return
        super().save_checkpoint(add_digest(checkpoint), path, storage_options)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        if is_remote(path):
            return super().load_checkpoint(path, map_location=map_location, weights_only=True)
        return read_checkpoint(path, required=("state_dict",), mmap=False)


# ---- the structure of a checkpoint's entries


def _is_dict(value: Any, of: Callable[[Any], bool] = lambda _: True) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) and of(item) for name, item in value.items())


def _is_list(value: Any, of: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(of, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_optimizer(value: Any) -> bool:
    """State of a torch optimizer: {"state": {number: {name: value}}, "param_groups": [{"params": [number], ...}]}.

    For Muon with AdamW it is {"parts": [state, state]}.
    """
    if _is_dict(value) and "parts" in value:
        return _is_list(value["parts"], _is_optimizer)
    if not (_is_dict(value) and isinstance(value.get("state"), dict) and _is_list(value.get("param_groups"), _is_dict)):
        return False
    lists = [group.get("params") for group in value["param_groups"]]
    return all(_is_list(numbers, _is_count) for numbers in lists) and all(
        _is_count(number) and _is_dict(state) for number, state in value["state"].items()
    )


_KINDS: dict[str, Callable[[Any], bool]] = {
    "state_dict": lambda value: _is_dict(value, lambda item: isinstance(item, Tensor)),
    "hyper_parameters": _is_dict,
    "datamodule_hyper_parameters": _is_dict,
    "zoo": lambda value: _is_dict(value) and isinstance(value.get("model"), str),
    "tokenizer": _is_dict,
    "epoch": _is_count,
    "global_step": _is_count,
    "loops": lambda value: _is_dict(value, _is_dict),
    "callbacks": lambda value: _is_dict(value, lambda item: isinstance(item, dict)),
    "optimizer_states": lambda value: _is_list(value, _is_optimizer),
    "lr_schedulers": lambda value: _is_list(value, _is_dict),
    "pytorch-lightning_version": lambda value: isinstance(value, str),
    "base_digest": lambda value: isinstance(value, str),
}
