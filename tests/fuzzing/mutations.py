"""Mutations of files and of nested values, for tests that damaged input gets one sentence that names the file.

All draw from a `random.Random`: the same seed gives the same damage, with or without hypothesis.
"""

import copy
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

WORDS = ("", "x", "os.system", "\0", "\ud800", "../x", "9" * 5000, "state_dict")
NUMBERS = (0, -1, 1, 2**31, 2**63, 10**9, 1 << 200, 0.5, 1e308, float("nan"), float("inf"), True, 1j)


def values() -> list[Any]:
    """Values of every kind that a file by torch.save can hold."""
    return [None, *WORDS, *NUMBERS, [], {}, (), [[[[]]]], {"": None}, {1: 2}, *tensors()]


def plain_values() -> list[Any]:
    """Values of every kind that JSON can hold."""
    return [None, "", "x", "\0", "../x", 0, -1, 2**31, 2**63, 1 << 200, 0.5, 1e308, True, [], {}, [[[]]], {"": None}]


def tensors() -> list[Tensor]:
    """Small tensors of unusual kinds: types, shapes, views of one number, not finite, sparse."""
    return [
        torch.zeros(()), torch.zeros(0), torch.zeros(3, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.complex64),
        torch.zeros(1).expand(10**6, 10**6), torch.full((2,), float("nan")), torch.zeros(2, dtype=torch.bool),
        torch.eye(2).to_sparse(), torch.zeros(1, 1, 1, 1, 1), torch.zeros(2, dtype=torch.float64),
    ]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every node below `value` in nested dictionaries and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutate(value: Any, rng: random.Random, replacements: list[Any], n: int = 1) -> Any:
    """A copy of a nested value in which `n` nodes are replaced, removed, renamed, or doubled."""
    for _ in range(n):
        # Paths are drawn level by level, so that few large branches do not take all mutations.
        path: list[Any] = []
        node = value
        while (keys := [p[-1] for p in places(node) if len(p) == 1]) and (not path or rng.random() < 0.7):
            path.append(rng.choice(keys))
            node = node[path[-1]]
        value = _changed(value, path, rng, replacements)
    return value


def _changed(value: Any, path: list[Any], rng: random.Random, replacements: list[Any]) -> Any:
    if not path:
        return copy.copy(rng.choice(replacements))
    key = path[0]
    if isinstance(value, dict):
        if len(path) > 1:
            return value | {key: _changed(value[key], path[1:], rng, replacements)}
        kind = rng.choice(("replace", "replace", "remove", "rename", "double"))
        rest = {k: v for k, v in value.items() if k != key}
        return {
            "replace": value | {key: rng.choice(replacements)},
            "remove": rest,
            "rename": rest | {rng.choice(("x", f"{key}x")): value[key]},
            "double": value | {f"{key}2": value[key]},
        }[kind]
    items = list(value)
    if len(path) > 1:
        items[key] = _changed(items[key], path[1:], rng, replacements)
    else:
        items[key : key + 1] = rng.choice(([], [items[key]] * 2, [rng.choice(replacements)]))
    return tuple(items) if isinstance(value, tuple) else items


def flip(content: bytes, rng: random.Random, n: int = 1, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes with `n` flipped bits between `start` and `stop`."""
    damaged = bytearray(content)
    for _ in range(n):
        place = rng.randrange(start, min(stop or len(content), len(content)))
        damaged[place] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def damage(content: bytes, rng: random.Random) -> bytes:
    """The bytes after one random change: flipped bits, a part removed, doubled, zeroed, or replaced by noise."""
    first, second = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    second = min(second, first + 64) if rng.random() < 0.7 else second
    kind = rng.choice(("flip", "flip", "cut", "remove", "double", "zero", "noise"))
    middle = {
        "remove": b"", "double": content[first:second] * 2, "zero": bytes(second - first),
        "noise": rng.randbytes(min(second - first, 10_000)),
    }  # fmt: skip
    if kind == "flip":
        return flip(content, rng, rng.choice((1, 3, 10)))
    return content[:first] if kind == "cut" else content[:first] + middle[kind] + content[second:]
