"""Digest of a checkpoint's content, stored in it and verified when it is read.

SHA-256 of all nodes of the nested dictionaries and lists in their order: types, values, names, shapes, dtypes and
bytes of tensors. It depends neither on the device nor on the file format, nor on the version of torch.
"""

import hashlib
import os
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError

KEY = "zoo_digest"  # of the digest in a checkpoint
SKIP = "ZOO_VERIFY"  # environment variable: 0 skips the verification
_verified: set[tuple[str, int, int]] = set()  # (path, size, time of the last change) of the files verified already


def add_digest(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint with its digest as a further entry."""
    plain = {name: value for name, value in content.items() if name != KEY}
    return plain | {KEY: digest(plain)}


def verify_digest(content: Mapping[str, Any], path: Path) -> None:
    """Compare the content of a checkpoint with the digest in it. Each file is verified once per process.

    A checkpoint without a digest is accepted: older versions of the zoo and other programs write none. The environment
    variable ZOO_VERIFY=0 skips the check.

    Args:
        content: what was read from the file.
        path: the file, for the message.

    Raises:
        UserError: the content has changed since the checkpoint was saved.
    """
    if KEY not in content or is_skipped():
        return
    status = path.stat()
    key = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    if key in _verified:
        return
    if digest({name: value for name, value in content.items() if name != KEY}) != content[KEY]:
        raise UserError(
            f"{path} is damaged: its content differs from the digest that was stored with it; copy it again or use "
            f"another checkpoint (if you changed it on purpose, remove its entry {KEY}, or set {SKIP}=0 to read it)"
        )
    _verified.add(key)


def is_skipped() -> bool:
    """Whether the environment variable ZOO_VERIFY turns the verification of files off."""
    return os.environ.get(SKIP) == "0"


def digest(content: Any) -> str:
    """64 hex digits that depend on every value in nested dictionaries and lists. Tensors are hashed in parallel."""
    nodes = list(_nodes(content))
    with ThreadPoolExecutor() as threads:
        digests = threads.map(_tensor_digest, [node for node in nodes if isinstance(node, Tensor)])
        hasher = hashlib.sha256()
        for node in nodes:
            hasher.update(next(digests) if isinstance(node, Tensor) else node)
    return hasher.hexdigest()


def _nodes(value: Any) -> Iterator[bytes | Tensor]:
    """The tensors in a nested value, and bytes that describe all else. Every text comes with its length."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield b"dict %d;" % len(value)
        for key, item in value.items():
            yield from _nodes(key)
            yield from _nodes(item)
    elif isinstance(value, list | tuple):
        yield b"%s %d;" % (b"list" if isinstance(value, list) else b"tuple", len(value))
        for item in value:
            yield from _nodes(item)
    elif isinstance(value, set | frozenset):  # their order differs between processes
        yield b"set %d;" % len(value)
        yield from sorted(b"".join(n for n in _nodes(item) if isinstance(n, bytes)) for item in value)
    elif isinstance(value, float):
        yield b"float " + struct.pack("<d", value)
    elif isinstance(value, bool | int | complex | None):
        yield b"%s %s;" % (type(value).__name__.encode(), str(value if value is None else value + 0).encode())
    else:  # texts, and the names of dtypes and devices
        text = value if isinstance(value, bytes | bytearray) else str(value).encode("utf-8", "surrogatepass")
        yield b"text %d;" % len(text) + text


def _tensor_digest(tensor: Tensor) -> bytes:
    """SHA-256 of dtype, shape and elements."""
    hasher = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
    data = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if data.numel():
        hasher.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.digest()
