"""Labels and their names: what stands in a file for a class, and what the class is called."""

import json
from pathlib import Path
from typing import NamedTuple

from zoo.errors import UserError


class Labels(NamedTuple):
    """C classes. A row may give its class by any label of it, or by its name."""

    names: list[str]  # (C,) their order is that of the classes
    by_label: dict[str, str]  # label -> name; several labels may share a name

    @property
    def classes(self) -> dict[str, int]:
        """What a row may say -> its class."""
        number = {name: i for i, name in enumerate(self.names)}
        return {label: number[name] for label, name in self.by_label.items()} | {
            name: i for name, i in number.items() if name not in self.by_label
        }

    @property
    def spellings(self) -> list[str]:
        """(C,) each class as the files spell it: its first label."""
        return [next(label for label, name in self.by_label.items() if name == wanted) for wanted in self.names]

    def __str__(self) -> str:
        return json.dumps(self.by_label, ensure_ascii=False)


def found(labels: set[str]) -> Labels:
    """Labels that are their own names, in the order of their numbers or else of the alphabet."""
    numbers = all(label.removeprefix("-").isdecimal() for label in labels)
    names = sorted(labels, key=int) if numbers else sorted(labels)
    return _checked({label: label for label in names}, "the training rows")


def read_labels(given: object) -> Labels:
    """What `label_names` says: names for the labels 0, 1, ..., as a list or between commas; or {label: name}.

    Both may be JSON, or the path of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these, or names fewer than two classes.
    """
    source = "label_names"
    if isinstance(given, str):
        source, given = _parsed(given)
    if isinstance(given, list):
        given = {str(i): name for i, name in enumerate(given)}
    if not isinstance(given, dict) or not all(isinstance(name, str) and name for name in given.values()):
        raise UserError(f"{source} must be a list of names, or an object of names by their labels")
    return _checked({str(label): name for label, name in given.items()}, source)


def _parsed(text: str) -> tuple[str, object]:
    """What a text says, and where it stands."""
    source, path = "label_names", Path(text).expanduser()
    if path.suffix.lower() == ".json":
        if not path.is_file():
            raise FileNotFoundError(f"no label names are at {path}: give a JSON file, or the names with commas between")
        source, text = str(path), path.read_text(encoding="utf-8-sig")
    if text.lstrip()[:1] not in ("[", "{") and source == "label_names":
        return source, [name.strip() for name in text.split(",") if name.strip()]
    try:
        return source, json.loads(text)
    except ValueError as error:
        raise UserError(f"{source} is not valid JSON ({error})") from error


def _checked(by_label: dict[str, str], source: str) -> Labels:
    names = list(dict.fromkeys(by_label.values()))
    if len(names) < 2:
        here = f"{names[0]!r} alone" if names else "none"
        raise UserError(f"{source}: a choice needs two classes, but here is {here}")
    return Labels(names, by_label)
