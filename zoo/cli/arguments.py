"""Read a command's words before its parser exists: configs by name, the checkpoint, the classes, every key given.

The checkpoint and the classes decide how the parser is built, so they must be known first. Values follow jsonargparse:
a later word overrides an earlier one, and so does a config that comes after an option.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, get_loader

from zoo.cli.config_names import find_config
from zoo.errors import UserError
from zoo.private_apis.jsonargparse_api import loader_exceptions

FLAGS = ("--compile", "--allow_other_data")  # alone they mean true; jsonargparse wants the word
READ = ("ckpt_path", "output_dir")


@dataclass
class Arguments:
    """What a command says.

    Args:
        words: the words after the verb, with each config's name replaced by its file.
        values: those of `ckpt_path` and `output_dir`, where given.
        class_paths: all class names given for model and data, in order; the last one is used.
        keys: (dotted key, where it was given: a config's path, or "" for the command line).
    """

    words: list[str] = field(default_factory=list)
    values: dict[str, str | None] = field(default_factory=dict)
    class_paths: dict[str, list[str]] = field(default_factory=lambda: {"model": [], "data": []})
    keys: list[tuple[str, str]] = field(default_factory=list)


def read_arguments(words: list[str]) -> Arguments:
    """Read the words after the verb.

    Raises:
        UserError: a config does not exist, is not valid YAML, or holds no settings.
    """
    arguments = Arguments()
    rest = list(words)
    while rest:
        # A config is given as --config NAME, --config=NAME, -c NAME or -cNAME.
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        is_config = option in ("--config", "-c") or (word.startswith("-c") and not word.startswith("--"))
        if is_config:
            if word.startswith("-c") and len(word) > 2 and not equals:
                value = word[2:]  # -cNAME
            elif not equals:
                value = rest.pop(0) if rest else ""
            path, settings = load_config(value)
            arguments.words.append(f"--config={path}")
            _add_settings(arguments, settings, source=path)
        elif option.startswith("--"):
            # An option's value follows after "=" or as the next word.
            follows = bool(rest) and not rest[0].startswith("--")
            # A flag without value means true.
            if option in FLAGS and not equals and not follows:
                word = f"{option}=true"
            arguments.words.append(word)
            # The next word is this option's value.
            if not equals and follows:
                value = rest.pop(0)
                arguments.words.append(value)
            _add_option(arguments, option.removeprefix("--"), value)
        else:
            arguments.words.append(word)
    return arguments


def load_config(value: str) -> tuple[str, dict[str, Any]]:
    """The path and the settings of a config given by name, as a file, or as YAML text."""
    # A file name contains none of these signs of YAML.
    is_text = any(sign in value for sign in ("{", "\n", ": "))
    path = Path(value) if is_text else find_config(value)
    try:
        settings = get_loader("yaml")(value if is_text else path.read_text(encoding="utf-8"))
    except loader_exceptions() as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise UserError(f"{path} is not valid YAML{line}: {getattr(error, 'problem', error)}") from error
    if not isinstance(settings, dict | None):
        raise UserError(f"{path} holds no settings: a config is a mapping of names to values")
    return value if is_text else str(path), settings or {}


def _load_mapping(value: str) -> dict[str, Any]:
    """A mapping written as YAML or JSON text; an empty one for other text, which the parser reports."""
    try:
        settings = get_loader("yaml")(value)
    except loader_exceptions():
        return {}
    return settings if isinstance(settings, dict) else {}


def _add_settings(arguments: Arguments, settings: dict[str, Any], source: str) -> None:
    arguments.values |= {name: settings[name] for name in READ if name in settings}
    for key, value in _flatten(settings):
        arguments.keys.append((key, source))
        _add_class(arguments, key, value)


def _add_option(arguments: Arguments, key: str, value: str) -> None:
    if key in READ:
        arguments.values[key] = _text_or_none(value)
    if key.split(".")[0] in arguments.class_paths and value.startswith("{"):  # --model '{"class_path": ...}'
        settings = _load_mapping(value)
        for name, entry in _flatten(settings, f"{key}."):
            arguments.keys.append((name, ""))
            _add_class(arguments, name, entry)
        if settings:
            return
    arguments.keys.append((key, ""))
    _add_class(arguments, key, value)


def _add_class(arguments: Arguments, key: str, value: Any) -> None:
    group = key.removesuffix(".class_path")
    if group in arguments.class_paths and isinstance(value, str):
        arguments.class_paths[group].append(value)


def _flatten(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and the value of every entry of nested mappings, without the mappings themselves."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _text_or_none(value: str) -> str | None:
    """A word as jsonargparse reads it for an optional string: "null" is None."""
    parser = ArgumentParser()
    parser.add_argument("--value", type=str | None)
    return parser.parse_args([f"--value={value}"]).value
