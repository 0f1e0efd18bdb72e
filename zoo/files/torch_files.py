"""Reading files by torch.save: no code runs, and nothing is allocated that the file's size does not justify.

Before torch reads the file: it is a regular file, its archive is not compressed, and its pickle names nothing but
tensors and plain containers. Afterwards: tensors are dense and on the CPU, together not much larger than the file
(names may share a tensor), and the nesting is neither deep nor recursive.
"""

import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.files.digest import KEY, is_skipped, verify_digest
from zoo.files.regular_files import refuse_larger_than_memory, regular_file

ZIP_MAGIC, OLD_MAGIC = b"PK\3\4", b"\x80\x02\x8a\x0a"  # first bytes of files by torch.save, since 2020 and before
LARGEST_PICKLE = 2**28  # bytes of everything in a file except the tensors
DEEPEST = 64  # nested containers
# Classes and functions that the pickle of a checkpoint may name: tensors, and containers that allocate nothing.
ALLOWED = re.compile(
    r"collections (OrderedDict|Counter|defaultdict)|builtins set|torch (Size|device|\w*Storage)"
    r"|torch\.storage \w*Storage|torch (float|bfloat|int|uint|bool|double|half|long|short|complex)\w*"
    r"|torch\._utils (_rebuild_tensor|_rebuild_tensor_v2|_rebuild_parameter)"
)
PICKLES_OF_OLD_FORMAT = 5  # magic number, protocol, system, content, names of the storages


def read_torch_file(path: str | os.PathLike, mmap: bool = False, map_location: Any = "cpu") -> Any:
    """The content of a file by torch.save.

    A dictionary is compared with the digest in it, or else the records of the archive with their checksums, unless the
    environment variable ZOO_VERIFY is 0.

    Args:
        path: the file.
        mmap: leave the tensors of a file in the zip format on the disk until they are used.
        map_location: device of the tensors, as in torch.load.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it is not a regular file, is damaged, or holds more than dense tensors and plain values.
    """
    path = regular_file(path)
    refuse_larger_than_memory(path)
    with path.open("rb") as file:
        magic = file.read(4)
        if magic not in (ZIP_MAGIC, OLD_MAGIC):
            kind = (
                "pickled Python objects, which could run code" if magic[:1] == b"\x80" else "no tensors by torch.save"
            )
            raise _damaged(path, f"it holds {kind}")
        try:
            is_zip = magic == ZIP_MAGIC
            n_bytes, names = _describe_zip(file) if is_zip else (path.stat().st_size, _old_names(file))
        except Exception as error:  # zipfile and pickletools raise many types for damaged files
            raise _damaged(path) from error
        for name in names:
            if not ALLOWED.fullmatch(name):
                raise UserError(
                    f"{path} holds pickled Python objects besides tensors and plain values ({name.replace(' ', '.')}), "
                    "which could run code: save its tensors and settings as plain values, or give another file"
                )
    try:
        content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap and is_zip)
    except pickle.UnpicklingError as error:
        raise _damaged(path, "it holds pickled Python objects besides tensors and plain values") from error
    except Exception as error:  # torch raises errors of many types for a damaged file
        raise _damaged(path) from error
    _check_values(content, path, n_bytes)
    if isinstance(content, dict) and KEY in content:
        verify_digest(content, path)
    elif is_zip and not is_skipped():
        _check_records(path)
    return content


def _damaged(path: Path, reason: str = "it cannot be read as a checkpoint") -> UserError:
    return UserError(f"{path} is truncated or damaged, or not a checkpoint: {reason}; copy or save it again")


# ---- the pickle and the archive around it


def _describe_zip(file: BinaryIO) -> tuple[int, Iterator[str]]:
    """The bytes of an archive's records, and the classes and functions that its pickle names."""
    n_bytes = os.fstat(file.fileno()).st_size
    archive = zipfile.ZipFile(file)
    records = archive.infolist()
    total = sum(record.file_size for record in records)
    is_stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
    if not is_stored or total > n_bytes or any(r.file_size != r.compress_size for r in records):
        raise ValueError("records are compressed, or larger than the file")
    (pickled,) = [
        record for record in records if record.filename.count("/") == 1 and record.filename.endswith("/data.pkl")
    ]
    if pickled.file_size > LARGEST_PICKLE:
        raise ValueError("the pickle is too large")
    return total, iter(list(_names(BytesIO(archive.read(pickled)))))


def _old_names(file: BinaryIO) -> list[str]:
    """The classes and functions that the pickles of a file in torch's format before 2020 name."""
    file.seek(0)
    return [name for _ in range(PICKLES_OF_OLD_FORMAT) for name in _names(file)]


def _names(file: BinaryIO | BytesIO) -> Iterator[str]:
    """ "module name" of each class and function that a pickle names; the file is then behind its end."""
    start = file.tell()
    for opcode, argument, position in pickletools.genops(file):
        if position is not None and position - start > LARGEST_PICKLE:
            raise ValueError("the pickle is too large")
        if opcode.name == "GLOBAL":
            yield str(argument)
        elif opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            yield f"the opcode {opcode.name}"


def _check_records(path: Path) -> None:
    """Raises UserError if a record of an archive differs from its checksum."""
    try:
        damaged = zipfile.ZipFile(path).testzip()
    except Exception as error:  # zipfile raises many types for damaged files
        raise _damaged(path) from error
    if damaged:
        raise _damaged(path, f"the checksum of its record {damaged} is wrong")


# ---- the content


def _check_values(content: Any, path: Path, n_bytes: int) -> None:
    """Check tensors and nesting of what a file of `n_bytes` holds. Raises UserError if they are not plain."""
    tensor_bytes = n_values = 0
    waiting = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        n_values += 1
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested:
                raise UserError(f"{path} holds a sparse, quantized or empty tensor: save dense tensors only")
            tensor_bytes += value.numel() * value.element_size()
        elif isinstance(value, dict):
            waiting += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list | tuple | set):
            waiting += [(item, depth + 1) for item in value]
        if depth > DEEPEST or n_values > n_bytes + 1000 or len(waiting) > n_bytes + 1000:
            raise _damaged(path, "its values are nested too deeply, or contain each other")
    if tensor_bytes > 4 * n_bytes + 1000:
        raise _damaged(path, f"its tensors need {tensor_bytes} bytes, but the file has only {n_bytes}")
