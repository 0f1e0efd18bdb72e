"""Private APIs of jsonargparse: its messages, options and classes. Written for jsonargparse 4.53.

Private members used: `_actions`, `_option_string_actions`, `_subcommands_action`, of an action its `extra_help`,
`_check_type` and `_typehint`, `_loaders_dumpers.yaml_load`, and the wording of error messages.
tests/private_apis/test_jsonargparse_api.py fails when one of them changes.
"""

import re
from argparse import SUPPRESS
from collections.abc import Callable, Container, Mapping
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser, _loaders_dumpers, set_loader

from zoo.text_formats.yaml_text import parse_settings


class Option(NamedTuple):
    """An option of a parser."""

    name: str  # "--trainer.max_steps"
    help: str  # its description, "" where it has none
    type: Any = None  # its type annotation
    default: Any = None


def options(parser: ArgumentParser) -> list[Option]:
    """The options of a parser and of its subcommands, without those of subclasses (`class_options`)."""
    subparsers = (getattr(parser._subcommands_action, "choices", None) or {}).values()
    return [option for one in (parser, *subparsers) for option in _own_options(one)]


def _own_options(parser: ArgumentParser) -> list[Option]:
    return [
        Option(name, action.help or "", getattr(action, "_typehint", None), action.default)
        for name, action in parser._option_string_actions.items()
    ]


def class_options(cls: type) -> list[Option]:
    """The constructor arguments of a class as options `--name`, those behind `**kwargs` included."""
    parser = ArgumentParser()
    own = set(parser._option_string_actions)
    parser.add_class_arguments(cls, fail_untyped=False)
    return [option for option in _own_options(parser) if option.name not in own]


def class_help(cls: type, group: str, skip: Container[str] = (), values: Mapping[str, Any] | None = None) -> str:
    """The help text of the constructor arguments of a class, as options `--group.name`, without those in `skip`.

    Args:
        cls: the class.
        group: first part of the names.
        skip: arguments that are left out.
        values: dotted name -> value that is shown as the default.
    """
    parser = ArgumentParser(usage=SUPPRESS, add_help=False)
    names = [option.name.removeprefix("--") for option in class_options(cls)]
    parser.add_class_arguments(cls, group, fail_untyped=False, skip={name for name in names if name in skip})
    show_as_defaults(parser, values or {})
    return parser.format_help()


def show_as_defaults(parser: ArgumentParser, values: Mapping[str, Any]) -> None:
    """Let the help of a parser show values as the defaults of its options; names that it lacks are left out."""
    names = {action.dest for action in parser._actions if hasattr(action, "_typehint")}
    parser.set_defaults({name: value for name, value in values.items() if name in names})


def describe(parser: ArgumentParser, name: str, text: str) -> None:
    """Replace the description of an option, if the parser has it."""
    for action in parser._actions:
        if action.dest == name:
            action.help = text


def hide_classes(parser: ArgumentParser, is_hidden: Callable[[str], bool]) -> None:
    """Leave classes out of the lists "known subclasses" in the help text of a parser.

    Args:
        parser: the parser.
        is_hidden: whether the class with this import path is left out.
    """
    for action in parser._actions:
        if hasattr(action, "extra_help"):
            action.extra_help = partial(_shortened_list, action.extra_help, is_hidden)


def _shortened_list(extra_help: Callable[[], str], is_hidden: Callable[[str], bool]) -> str:
    """The result of a method `extra_help`, ", known subclasses: A, B", without the hidden classes."""
    start, colon, names = extra_help().partition("subclasses: ")
    return start + colon + ", ".join(name for name in names.split(", ") if not is_hidden(name))


def wrong_null(parser: ArgumentParser, config: Any) -> str | None:
    """jsonargparse's message about the first value that is null although its type excludes null; None if all fit.

    jsonargparse means "not given" by None, and therefore accepts it for every type in a config and for a class.
    """
    for action in parser._actions:
        if hasattr(action, "_check_type") and action.dest in config and config[action.dest] is None:
            try:
                action._check_type(None)
            except (TypeError, ValueError) as error:
                return str(error).replace("Got value: None", "Got value: null")
    return None


def wrong_null_argument(cls: type, arguments: Any, skip: Container[str] = ()) -> str | None:
    """The same for a class and its constructor arguments, without those named in `skip`."""
    parser = ArgumentParser()
    parser.add_class_arguments(cls, fail_untyped=False)
    return wrong_null(parser, {name: value for name, value in arguments.items() if name not in skip})


def constructor_types(cls: type) -> dict[str, tuple[Any, bool]]:
    """Name -> (type annotation, whether it is required) of constructor arguments, those behind `**kwargs` included."""
    parser = ArgumentParser()
    parser.add_class_arguments(cls, fail_untyped=False)
    return {
        action.dest: (action._typehint, action.required) for action in parser._actions if hasattr(action, "_typehint")
    }


def original_error(error: BaseException) -> BaseException:
    """The exception that a constructor raised, without jsonargparse's exceptions around it."""
    while _is_raised_in_jsonargparse(error) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_raised_in_jsonargparse(error: BaseException) -> bool:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals.get("__name__", "").startswith("jsonargparse.")


# ---- error messages: each function returns the name that the message complains about, or None for another message


def _first(pattern: str, message: str) -> str | None:
    found = re.search(pattern, message)
    return found[1] if found else None


def unknown_option(message: str) -> str | None:
    """The option of "unrecognized arguments: --trainer.max_stepz=3"."""
    return _first(r"unrecognized arguments: ([^\s=]+)", message)


def without_value(message: str) -> str | None:
    """The option of "argument --prompt: expected one argument"."""
    return _first(r"argument (?:-\w/)?(--\S+): expected one argument", message)


def unknown_setting(message: str) -> str | None:
    """The key of a config, or the argument of a class, that does not exist."""
    found = re.search(r"ption '([\w.]+)' is not accepted|not accept option '([\w.]+)'", message)
    return (found[1] or found[2]) if found else None


def unknown_class(message: str) -> str | None:
    """The class name that is neither known nor importable."""
    return _first(r"dot import path string: (\S+)", message)


def class_of_another_kind(message: str) -> str | None:
    """The import path of a class that is not derived from the one that the option needs."""
    found = re.search(r"Import path (\S+ )?does not correspond to a subclass of", message)
    value = re.search(r"Given value: (\S+)$", message)
    return (found[1] or (value[1] if value else "")).strip() or None if found else None


def class_with_settings(message: str) -> str | None:
    """The import path of the class, a setting of which is wrong."""
    return _first(r"Problem with given class_path '([\w.]+)'", message)


def ambiguous_class(message: str) -> tuple[str, list[str]] | None:
    """A class name that several known classes have, and their import paths."""
    found = re.search(
        r"Multiple subclasses with name (\w+)\. Give the full class path [^:]*: ([\w., ]+?)\.?$", message, re.M
    )
    return (found[1], found[2].split(", ")) if found else None


def missing_file(message: str) -> str | None:
    """The path of a config file that does not exist."""
    return _first(r"File does not exist: '([^']+)'", message)


def missing_arguments(message: str) -> list[str]:
    """The names in "the following arguments are required: model, data"."""
    found = re.search(r"the following arguments are required: ([^\n]+)", message)
    return [name.strip() for name in found[1].split(",")] if found else []


def key_of(message: str) -> str | None:
    """The key whose value is wrong, as in 'Parser key "model": ...'."""
    return _first(r'Parser key "([^"]+)"', message)


def failed_import(message: str) -> tuple[str, str] | None:
    """A class path that cannot be imported, and the reason."""
    reasons = r"(No module named [^\n]+|[^\n]+ no attribute [^\n]+)"
    found = re.search(rf"Problem with given class_path '([^']+)':\s+{reasons}", message)
    return (found[1], found[2]) if found else None


def one_sentence(message: str) -> str:
    """The informative line of jsonargparse's nested messages, or a sentence made of key, types and value."""
    # Messages are nested: the last one is about the value itself, the keys lead to it.
    keys = re.findall(r'Parser key "([^"]+)"', message)
    innermost = message[message.rfind('Parser key "') :] if keys else message
    key = ".".join(keys) or "a value"
    # The value has the wrong type.
    if value := re.search(r"Expected an? (.+?)\. Got value: (.*)", innermost):
        return f"{key} must be {_kind(value[1])}, not {value[2]!r}"
    # The value is of none of several types, which the message lists one by one.
    union = re.match(r"(.*?)Given value type: .*?Given value: (.*?)$", innermost, re.DOTALL | re.MULTILINE)
    kinds = re.findall(r"- Expected an? (<class '\w+'>|typing\.Literal\[.+?\])$", union[1], re.M) if union else []
    # Otherwise the first line that is not part of jsonargparse's frame.
    lines = [re.sub(r"^\s*- ", "", line).strip() for line in innermost.splitlines() if line.strip()]
    expected = r"Expected a (?:<class|path|typing\.Literal)"
    noise = re.compile(rf"^(Parser key|Does not validate|Subtypes:|Errors:|{expected}|Given value|Problem)")
    informative = [line for line in lines if not noise.match(line)]
    if informative:
        return informative[0]
    if union and kinds:
        return f"{key} must be {' or '.join(_kind(kind) for kind in kinds)}, not {union[2]!r}"
    return " ".join(lines)


def _kind(name: str) -> str:
    """A type as the user writes its values."""
    inside = re.match(r"typing\.Literal\[(.+)\]$|<class '(\w+)'>$", name)
    if not inside:
        return name
    if inside[2]:
        return inside[2].replace("NoneType", "null")
    return " or ".join(inside[1].rsplit(", ", 1))


# ---- YAML


def load_yaml(text: str) -> Any:
    """The value of a YAML text, as the zoo's parsers and its own first look at the arguments read it.

    As in jsonargparse's loader, `{data}` and `name:` are texts, not mappings of names to nothing.

    Raises:
        yaml.YAMLError: see `zoo.text_formats.yaml_text.parse_settings`.
    """
    value = parse_settings(text)
    if isinstance(value, dict) and value and all(entry is None for entry in value.values()):
        names = [str(name) for name in value]
        if text.strip() == f"{names[0]}:" or set(text.strip(" {}").replace(" ", "").split(",")) == set(names):
            return text
    return value


# For every parser of the process: for configs and options, and for single values, which do not use the public hook.
set_loader("yaml", load_yaml, (yaml.YAMLError,))
_loaders_dumpers.yaml_load = load_yaml
# A saved config has the value of an Enum, such as the default interval of Lightning's Timer.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))
