"""Seeded mutations of nested values, text and bytes, for fuzzing: few changes, so that most of the input is valid."""

import math
from collections.abc import Sequence
from random import Random
from typing import Any

# Values that readers tend to forget. Strings include a number, a NUL, an unpaired surrogate and a long text.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**63, -(2**63), 10**30,
    0.5, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf,
    "", " ", "0", "-1", "1.5", "nan", "true", "null", "a", "é", "\0", "\ud800", "\n", "x" * 5000, "../../etc", "<s>",
    [], [None], [0, 1], ["a", "b"], [[]], {}, {"a": 1}, {"": None}, {"content": 3}, [{"a": []}],
)  # fmt: skip
SIGNS = (*"{}[]:,-&*!|>%@`'\"#\n\t\r \0\\", "\ufeff", "\u2028", "é", "1e999", "---\n", "~", "null", "[" * 5000)
DEPTHS = (20, 200, 600)  # of nested values: less than Python's own limit, because they must be written to files


def odd_value(rng: Random, extra: Sequence[Any] = ()) -> Any:
    """A value of `ODD_VALUES` or of `extra`; rarely a list nested many times."""
    if rng.random() < 0.02:
        value: Any = []
        for _ in range(rng.choice(DEPTHS)):
            value = [value]
        return value
    return rng.choice([*ODD_VALUES, *extra])


def mutate(value: Any, rng: Random, extra: Sequence[Any] = ()) -> Any:
    """A copy of nested dictionaries and lists with one to three changes, rarely another value altogether.

    Args:
        value: dictionaries, lists and leaves of any type.
        rng: source of all choices; a generator in the same state gives the same result.
        extra: further values that may replace a part.
    """
    if rng.random() < 0.02:
        return odd_value(rng, extra)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        value = _mutate_once(value, rng, extra)
    return value


def _mutate_once(value: Any, rng: Random, extra: Sequence[Any]) -> Any:
    """A copy with one change at a random place; inner places are as likely as outer ones."""
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        if rng.random() < (0.75 if isinstance(value[key], dict | list) and value[key] else 0.3):
            return {**value, key: _mutate_once(value[key], rng, extra)}
        change = rng.randrange(6)
        if change == 0:
            return {k: v for k, v in value.items() if k != key}
        if change == 1:  # another name at the same place
            name = mutate_text(key, rng) if isinstance(key, str) else odd_value(rng)
            name = name if isinstance(name, str | int) else str(name)
            return {(name if k == key else k): v for k, v in value.items()}
        if change == 2:
            return {**value, str(odd_value(rng))[:20]: odd_value(rng, extra)}
        if change == 3:
            return {**value, key: value[rng.choice(list(value))]}
        return {**value, key: _other_leaf(value[key], rng, extra)}
    if isinstance(value, list) and value:
        i = rng.randrange(len(value))
        if rng.random() < 0.6:
            return [*value[:i], _mutate_once(value[i], rng, extra), *value[i + 1 :]]
        change = rng.randrange(4)
        if change == 0:
            return [*value[:i], *value[i + 1 :]]
        if change == 1:
            return [*value[:i], value[i], *value[i:]]
        if change == 2:
            return [*value[:i], odd_value(rng, extra), *value[i:]]
        return value[:i]
    return _other_leaf(value, rng, extra)


def _other_leaf(value: Any, rng: Random, extra: Sequence[Any]) -> Any:
    """A replacement of a leaf: a number or a text near it, the value inside a list or as text, or any odd value."""
    near = rng.random()
    if near < 0.3 and isinstance(value, int | float) and not isinstance(value, bool):
        return rng.choice([value + 1, value - 1, -value, value * 1000, value / 3, str(value), float(value)])
    if near < 0.3 and isinstance(value, str):
        return mutate_text(value, rng)
    if near < 0.4:
        return rng.choice([[value], {"value": value}])
    return odd_value(rng, extra)


def mutate_text(text: str, rng: Random) -> str:
    """A text with one change: characters removed, repeated, replaced, or a sign of some syntax inserted."""
    start = rng.randrange(len(text) + 1)
    end = min(len(text), start + rng.choice([1, 1, 2, 8]))
    sign = rng.choice(SIGNS)
    change = rng.randrange(4)
    if change == 0:
        return text[:start] + text[end:]
    if change == 1:
        return text[:end] + text[start:]
    return text[:start] + sign + text[start if change == 2 else end :]


def mutate_bytes(data: bytes, rng: Random) -> bytes:
    """Bytes with one to four changes: a flipped bit, a part removed, repeated or replaced, an odd integer, a cut."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice([1, 2, 4, 8, 64]))
        change = rng.randrange(7)
        if change == 0:
            data = flip_bit(data, rng)
        elif change == 1:
            data = data[:start] + data[end:]
        elif change == 2:
            data = data[:end] + data[start:]
        elif change == 3:
            size = rng.choice([1, 2, 4, 8])
            number = rng.choice([0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1])
            data = data[:start] + number.to_bytes(size, "little") + data[start + size :]
        elif change == 4:
            data = data[:start] + rng.randbytes(end - start) + data[end:]
        elif change == 5:
            data = data[:start] + rng.choice([b"\xff\xfe", b"\xc3", b"\0", b"\r\n", b"{", b"["]) + data[start:]
        else:
            data = data[:start]
    return data


def flip_bit(data: bytes, rng: Random) -> bytes:
    """Bytes with one bit inverted; empty bytes stay empty."""
    if not data:
        return data
    i = rng.randrange(len(data))
    return data[:i] + bytes([data[i] ^ (1 << rng.randrange(8))]) + data[i + 1 :]
