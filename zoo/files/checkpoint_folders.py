"""Checkpoints as folders, which several processes write and read together through torch.distributed.checkpoint.

A folder holds `meta.pt`, the checkpoint without its sharded tensors, and safetensors files with the parts of these that
each process held. `meta.pt` lists every sharded tensor with its place, shape and dtype, and every file with its size
and SHA-256. Parts are read by slices, so any number of processes can read a folder. Nothing in it is a pickle of Python
objects; the folder replaces an earlier one when it is complete.
"""

import hashlib
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from zoo.errors import UserError
from zoo.files.atomic import flush_folder, remove_stale, replace_path, temporary_path
from zoo.files.digest import KEY as DIGEST
from zoo.files.digest import add_digest, is_skipped
from zoo.files.torch_files import read_torch_file
from zoo.sharding.tensors import is_divided

META = "meta.pt"
KEY = "zoo_shards"  # entry of meta.pt that lists tensors and files
SHARDED_ENTRIES = ("state_dict", "optimizer_states")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)
}
Place = tuple[str | int, ...]  # keys from the checkpoint to a value inside its dictionaries and lists


def is_checkpoint_folder(path: str | Path) -> bool:
    """Whether it is a folder written by `write_folder`."""
    return isinstance(path, str | Path) and (Path(path) / META).is_file()


def check_complete(path: str | Path) -> None:
    """Raises UserError if a folder holds files of a sharded checkpoint without `meta.pt`, as a partial copy does."""
    folder = Path(path)
    if not (folder / META).is_file() and any(folder.glob("shard-*.safetensors")):
        raise UserError(f"{folder} is an incomplete copy of a checkpoint folder, without {META}: copy it again")


def has_shards(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's tensors are spread over processes."""
    return any(is_divided(tensor) for tensor in dict(checkpoint.get("state_dict", {})).values())


# ---- writing


def write_folder(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint whose sharded tensors are spread over the processes. All of them must call this.

    Args:
        checkpoint: what this process holds. Sharded tensors are written by all processes, the rest by the first one.
        path: the folder, or an earlier checkpoint that is replaced.

    Raises:
        OSError: some process could not write; the earlier checkpoint is unchanged. All processes raise it.
    """
    import torch.distributed.checkpoint as dcp  # here, because it takes as long to import as half of torch

    content = {name: copy_nested(checkpoint[name]) for name in SHARDED_ENTRIES if name in checkpoint}
    tensors: dict[str, Tensor] = {}
    table = []
    for place, tensor in tensors_in(content):
        if is_divided(tensor):
            name = ".".join(map(str, place))
            tensors[name] = tensor
            dtype = str(tensor.dtype).removeprefix("torch.")
            table.append({"name": name, "place": list(place), "shape": list(tensor.shape), "dtype": dtype})
            assign(content, place, None)
    partial = _gather(_new_folder(path) if _rank() == 0 else None)[0]
    problem = None
    try:
        if isinstance(partial, Exception):
            raise partial
        writer = dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True)
        dcp.save(tensors, storage_writer=writer)
        # Each process hashes its share of the files.
        names = sorted(file.name for file in Path(partial).iterdir())
        own = {name: _describe_file(Path(partial) / name) for name in names[_rank() :: _processes()]}
        files = {name: entry for part in _gather(own) for name, entry in part.items()}
        if _rank() == 0:
            meta = {**checkpoint, **content, KEY: {"tensors": table, "files": files}}
            with open(Path(partial) / META, "wb") as file:
                torch.save(add_digest(meta), file)
            flush_folder(Path(partial))
            replace_path(Path(partial), path)
    except Exception as error:  # of dcp.save, which collects errors of any type from all processes
        if not isinstance(error, OSError | RuntimeError | dcp.api.CheckpointException):
            raise
        problem = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    problems = [text for text in _gather(problem) if text]
    if problems:
        if _rank() == 0 and not isinstance(partial, Exception):
            shutil.rmtree(partial, ignore_errors=True)
        raise OSError(problems[0])


def _new_folder(path: Path) -> Path | OSError:
    partial = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path)
        partial.mkdir()
    except OSError as error:
        return OSError(error.errno, error.strerror)
    return partial


def _describe_file(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


# ---- reading


def read_meta(path: str | Path) -> dict[str, Any]:
    """A checkpoint in which every sharded tensor is a tensor on the device "meta", and its table under `KEY`.

    Raises:
        UserError: a file is missing or has another size, or the table is damaged.
    """
    path = Path(path)
    checkpoint = read_torch_file(path / META)
    if not isinstance(checkpoint, dict) or not _is_table(checkpoint.get(KEY)):
        raise _damaged(path, f"{META} has no valid table of its tensors")
    files, tensors = checkpoint[KEY]["files"], checkpoint[KEY]["tensors"]
    for name, entry in files.items():
        file = path / name
        if not file.is_file() or file.is_symlink() or file.stat().st_size != entry["bytes"]:
            raise _damaged(path, f"its file {name} is missing or has another size")
    # The files justify the memory of the tensors.
    n_bytes = sum(math.prod(tensor["shape"]) * DTYPES[tensor["dtype"]].itemsize for tensor in tensors)
    if n_bytes > sum(entry["bytes"] for entry in files.values()):
        raise _damaged(path, f"its tensors need {n_bytes} bytes, more than its files have")
    for tensor in tensors:
        empty = torch.empty(tensor["shape"], dtype=DTYPES[tensor["dtype"]], device="meta")
        try:
            assign(checkpoint, tensor["place"], empty)
        except (KeyError, IndexError, TypeError) as error:
            raise _damaged(path, f"{META} has no place for the tensor {tensor['name']}") from error
    return checkpoint


def read_folder(path: str | Path) -> dict[str, Any]:
    """The checkpoint in a folder, with complete tensors on the CPU.

    Raises:
        UserError: it is damaged.
    """
    checkpoint = read_meta(path)
    verify_files(path, checkpoint, alone=True)
    tensors: dict[str, Tensor] = {}
    for entry in checkpoint[KEY]["tensors"]:
        tensors[entry["name"]] = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
        assign(checkpoint, entry["place"], tensors[entry["name"]])
    read_tensors(path, tensors, alone=True)
    for name in (KEY, DIGEST):
        checkpoint.pop(name, None)
    return checkpoint


def verify_files(path: str | Path, checkpoint: Mapping[str, Any], alone: bool = False) -> None:
    """Compare the files of a folder with their SHA-256, unless the environment variable ZOO_VERIFY is 0.

    Args:
        path: the folder.
        checkpoint: what `read_meta` returned.
        alone: read all files; otherwise all processes must call this, and each of them reads its share.

    Raises:
        UserError: a file has changed. All processes raise it.
    """
    if is_skipped():
        return
    files = checkpoint[KEY]["files"]
    names = sorted(files) if alone else sorted(files)[_rank() :: _processes()]
    changed = [name for name in names if _describe_file(Path(path) / name)["sha256"] != files[name]["sha256"]]
    if wrong := changed if alone else [name for part in _gather(changed) for name in part]:
        raise _damaged(Path(path), f"the content of its file {wrong[0]} differs from the digest in {META}")


def read_tensors(path: str | Path, tensors: dict[str, Tensor], alone: bool = False) -> None:
    """Fill tensors with those of the same names in a folder.

    Args:
        path: the folder.
        tensors: name -> complete tensor, or sharded one, of which this process reads its part.
        alone: read without the other processes; otherwise all must call this.

    Raises:
        UserError: a file is damaged, or a tensor is missing or incomplete.
    """
    if not tensors:
        return
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(path))
    try:
        stored: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
    except Exception as error:  # safetensors and json raise errors of many types for damaged headers
        raise _damaged(Path(path), "the header of a file cannot be read") from error
    for name, tensor in tensors.items():
        elements = sum(math.prod(chunk.sizes) for chunk in stored[name].chunks) if name in stored else -1
        if elements != tensor.numel() or stored[name].size != tensor.shape:
            raise _damaged(Path(path), f"its files do not hold all of {name}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # on purpose
            dcp.load(tensors, storage_reader=reader, no_dist=alone)
    except Exception as error:  # as above
        raise _damaged(Path(path), "a tensor cannot be read") from error


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is truncated or damaged: {reason}; copy it again or use another checkpoint")


def _is_table(table: Any) -> bool:
    """Whether a value has the structure of the table in meta.pt."""
    if not isinstance(table, dict) or not isinstance(table.get("tensors"), list):
        return False
    files = table.get("files")
    if not isinstance(files, dict) or not all(map(_is_file_entry, files.items())):
        return False
    return all(map(_is_tensor_entry, table["tensors"]))


def _is_file_entry(item: tuple[Any, Any]) -> bool:
    name, entry = item
    return (
        isinstance(name, str)
        and Path(name).name == name
        and isinstance(entry, dict)
        and type(entry.get("bytes")) is int
        and isinstance(entry.get("sha256"), str)
    )


def _is_tensor_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and isinstance(entry.get("place"), list)
        and bool(entry["place"])
        and entry["place"][0] in SHARDED_ENTRIES
        and all(type(key) in (str, int) for key in entry["place"])
        and isinstance(entry.get("shape"), list)
        and all(type(size) is int and 0 <= size < 2**40 for size in entry["shape"])
        and isinstance(entry.get("dtype"), str)
        and entry["dtype"] in DTYPES
    )


# ---- nested dictionaries and lists


def copy_nested(value: Any) -> Any:
    """Dictionaries and lists copied, everything else shared."""
    if isinstance(value, Mapping):
        return {key: copy_nested(item) for key, item in value.items()}
    return [copy_nested(item) for item in value] if isinstance(value, list) else value


def tensors_in(value: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """Every tensor in nested dictionaries and lists, with its place."""
    items: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, Tensor):
        yield place, value
    for key, item in list(items):
        yield from tensors_in(item, (*place, key))


def assign(content: Any, place: Any, value: Any) -> None:
    """Replace the value at an existing place."""
    for key in place[:-1]:
        content = content[key]
    content[place[-1]]  # raises an error where the place does not exist
    content[place[-1]] = value


# ---- processes


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _gather(value: Any) -> list[Any]:
    """The value of every process, in all processes."""
    if _processes() == 1:
        return [value]
    values: list[Any] = [None] * _processes()
    dist.all_gather_object(values, value)
    return values
