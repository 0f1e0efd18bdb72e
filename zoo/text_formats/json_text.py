"""JSON: a bounded reader that refuses repeated keys, and a writer without NaN and Infinity, which are not JSON."""

import json
import math
from pathlib import Path
from typing import Any

from zoo.errors import UserError

MAX_DIGITS = 1000  # of an integer; the largest double has 309
MAX_DEPTH = 100  # of lists and objects within each other


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, it is nested too deeply, a key occurs twice, an integer is too long, or a
            number other than 0 is too small for a float.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_int=_parse_integer, parse_float=_parse_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    """Raises ValueError if lists and objects are more than MAX_DEPTH deep: functions that recurse would fail."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        children = [entry.values() if isinstance(entry, dict) else entry for entry in level]
        level = [child for entries in children for child in entries if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def parse_object(content: str | bytes) -> dict[str, Any]:
    """The object of a JSON text, of characters or of bytes in UTF-8.

    Raises:
        ValueError: as `parse_json`; or it is not UTF-8, or another value than an object.
    """
    value = parse_json(content.decode() if isinstance(content, bytes) else content)
    if not isinstance(value, dict):
        raise ValueError(f"it is of type {type(value).__name__}")
    return value


def read_object(file: Path) -> dict[str, Any]:
    """The object in a file of a downloaded model.

    Raises:
        UserError: the file is damaged, or holds something else.
    """
    try:
        return parse_object(file.read_bytes())
    except ValueError as error:
        reason = describe_json_error(error)
        raise UserError(f"{file} is truncated, or holds no JSON object ({reason}): download it again") from None


def describe_json_error(error: ValueError, with_line: bool = True) -> str:
    """The reason of an error of `parse_json` or `parse_object`, with its place where that is known."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    return f"{error.msg} at {f'line {error.lineno} ' if with_line else ''}column {error.colno}"


def dump_json(value: Any, **options: Any) -> str:
    """The JSON text of a value. A number that is NaN or infinite is written as null.

    Args:
        value: nested dictionaries, lists, texts and numbers.
        **options: arguments of `json.dumps`.
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    """The value with None for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"its key {shorten(repeated)} occurs twice")
    return mapping


def _parse_integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer in it has {len(digits)} digits, more than {MAX_DIGITS}")
    return int(digits)


def _parse_float(text: str) -> float:
    number = float(text)
    if number == 0 and text.lower().partition("e")[0].strip("-0."):
        raise ValueError(f"the number {shorten(text)} in it is too small for a float, where it would be 0")
    return number


def shorten(value: Any, length: int = 40) -> str:
    """The representation of a value, cut to `length` characters."""
    # Cut a text first: the representation of a long one would take long.
    text = repr(value[: length + 1] if isinstance(value, str) else value)
    return text if len(text) <= length else f"{text[: length - 3]}..."
