"""Reading files in safetensors format: https://huggingface.co/docs/safetensors."""

import os
import struct
from math import prod
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from zoo.errors import UserError
from zoo.files.regular_files import refuse_larger_than_memory, regular_file
from zoo.text_formats.json_text import parse_object

LARGEST_HEADER = 100_000_000  # bytes, as in the safetensors package
BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}  # fmt: skip


def read_safetensors(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors in a file, after its header was compared with the file's size.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it is not a regular file, or is damaged, or holds a type of tensor that torch does not have.
    """
    path = regular_file(path)
    refuse_larger_than_memory(path)
    if not _is_valid(path):
        raise UserError(f"{path} is truncated, or not in safetensors format: download it again")
    try:
        return load_file(path)
    except Exception as error:  # the package raises several types for damaged headers
        raise UserError(f"{path} is truncated, or not in safetensors format: download it again") from error


def _is_valid(path: Path) -> bool:
    """Whether the header fits the file: each tensor has as many bytes as its type and shape need, one after another."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
        if length > min(LARGEST_HEADER, size - 8):
            return False
        try:
            header = parse_object(file.read(length))
        except ValueError:  # for example two tensors of the same name
            return False
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    if not all(map(_is_entry, tensors)):
        return False
    end = 0
    for entry in sorted(tensors, key=lambda entry: entry["data_offsets"]):
        if entry["data_offsets"] != [end, end + BYTES[entry["dtype"]] * prod(entry["shape"])]:
            return False
        end = entry["data_offsets"][1]
    return 8 + length + end == size


def _is_entry(entry: Any) -> bool:
    """Whether this is {"dtype": a known type, "shape": [...], "data_offsets": [begin, end]}."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return False
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2 or len(shape) > 64:
        return False
    is_known = isinstance(entry["dtype"], str) and entry["dtype"] in BYTES
    return is_known and all(type(number) is int and 0 <= number < 2**63 for number in (*shape, *offsets))
