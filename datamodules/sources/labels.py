"""Labels and class names: how files spell a class, and what the class is called."""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from zoo.errors import UserError
from zoo.text_formats.json_text import describe_json_error, parse_json, shorten
from zoo.text_formats.text_file import read_text

_MAX_BYTES = 1 << 24  # of a file of class names


class Labels(NamedTuple):
    """C classes. A row may give its class by any of its labels, or by its name."""

    names: list[str]  # (C,) in the order of the classes
    by_label: dict[str, str]  # label -> name; several labels may share a name

    @property
    def classes(self) -> dict[str, int]:
        """Accepted cell of a row -> number of the class: labels, names, and integers without decimals."""
        # Labels come first, names second, and whole numbers without decimals last.
        number = {name: i for i, name in enumerate(self.names)}
        labels = {label: number[name] for label, name in self.by_label.items()}
        exact = labels | {name: i for name, i in number.items() if name not in labels}
        return exact | {label_text(label): i for label, i in labels.items() if label_text(label) not in exact}

    @property
    def spellings(self) -> list[str]:
        """(C,) each class as the files spell it: its first label."""
        first: dict[str, str] = {}
        for label, name in self.by_label.items():
            first.setdefault(name, label)
        return [first[name] for name in self.names]

    def __str__(self) -> str:
        return json.dumps(self.by_label, ensure_ascii=False)


def label_text(cell: Any) -> str:
    """Label in a cell as text. A whole number is written without decimals: 1.0 and "1.0" give "1"."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    text = str(cell).strip()
    return text.partition(".")[0] if re.fullmatch(r"-?\d+\.0+", text) else text


def labels_of_rows(labels: set[str]) -> Labels:
    """Labels found in rows as their own names, in numerical order if all are whole numbers, else alphabetically.

    Raises:
        UserError: there are fewer than two classes.
    """
    # One class per number, with its shortest spelling.
    spelling: dict[str, str] = {}
    for label in sorted(labels, key=lambda label: (len(label), label)):
        spelling.setdefault(label_text(label), label)  # 0 and 0.0 are one class, called 0
    distinct = spelling.values()
    are_numbers = all(label.removeprefix("-").isdecimal() and len(label) < 400 for label in distinct)
    names = sorted(distinct, key=int) if are_numbers else sorted(distinct)
    return _check({label: label for label in names}, "the training rows")


def read_labels(given: object) -> Labels:
    """Classes that `label_names` describes: names of the labels 0, 1, ... or {label: name}.

    Args:
        given: a list of names, a mapping, names separated by commas, JSON, or the path of a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it is none of these, or names fewer than two classes.
    """
    # Bring all forms to a mapping from label to name.
    source = "label_names"
    if isinstance(given, str):
        source, given = _parse(given)
    if isinstance(given, list):
        given = {str(i): name for i, name in enumerate(given)}
    if not isinstance(given, dict) or not all(isinstance(name, str) and name for name in given.values()):
        raise UserError(f"{source} must be a list of names, or a mapping from labels to names")
    # A name is a text that can be written, and each label has one name.
    by_label = {str(label): name for label, name in given.items()}
    if len(by_label) < len(given):
        raise UserError(f"{source} gives a label twice, as a number and as a text")
    for text in (*by_label, *by_label.values()):
        if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{source}: {shorten(text)} has half of a character: write it in UTF-8")
    return _check(by_label, source)


def _parse(text: str) -> tuple[str, object]:
    """(where the value was read, value) of a `label_names` given as a string."""
    source, path = "label_names", Path(os.path.expanduser(text))
    if path.suffix.lower() == ".json":
        if not os.path.exists(path):
            raise FileNotFoundError(
                f"there is no file {path}: set --data.label_names to a JSON file, or to names separated by commas"
            )
        source, text = str(path), read_text(path, max_bytes=_MAX_BYTES)
    # Text that is not JSON is a list of names separated by commas.
    if text.lstrip()[:1] not in ("[", "{") and source == "label_names":
        return source, [name.strip() for name in text.split(",") if name.strip()]
    try:
        return source, parse_json(text)
    except ValueError as error:
        raise UserError(f"{source} is not valid JSON ({describe_json_error(error)})") from error


def _check(by_label: dict[str, str], source: str) -> Labels:
    names = list(dict.fromkeys(by_label.values()))
    if len(names) < 2:
        given = f"only {names[0]!r}" if names else "none"
        raise UserError(f"{source}: classification needs at least two classes, but there is {given}")
    return Labels(names, by_label)
