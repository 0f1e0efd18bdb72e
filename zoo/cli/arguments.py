"""Read a command's words before its parser exists: configs by name, the checkpoint, the classes, every key given.

The checkpoint and the classes decide how the parser is built, so they must be known first. Values follow jsonargparse:
a later word overrides an earlier one, as does a config that comes after an option. A file with the settings of one
group (`--model FILE`) becomes a config.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from zoo.cli.config_names import UnknownWordError, describe_stray_word, find_config
from zoo.console.messages import refuse_non_utf8
from zoo.errors import UserError
from zoo.private_apis.jsonargparse_api import load_yaml
from zoo.text_formats.json_text import shorten
from zoo.text_formats.text_file import read_text
from zoo.text_formats.yaml_text import describe_yaml_error
from zoo.weights import is_project_weights

FLAGS = ("--compile", "--allow_other_data", "--automatic", "--overwrite")  # alone they mean true for jsonargparse
LIKE_CONFIG = ("config", "ckpt_path", "compile", "checkpoint")  # with one dash they look like -cNAME
READ = ("ckpt_path", "output_dir")  # also "model.weights" on the command line
GROUPS = (  # keys whose value may be the path of a file with the settings of that group
    "model", "data", "trainer", "checkpoint", "early_stopping", "mixed_precision", "non_finite", "throughput",
    "samples", "predictions", "plots",
)  # fmt: skip
LOGGER = "--trainer.logger"
LOGGER_OPTIONS = (LOGGER, f"{LOGGER}+", f"{LOGGER}.class_path")
LOGGERS = ("CSVLogger", "TensorBoardLogger")  # those that cannot be built without a folder
RUN_FOLDER = "{output_dir}"  # as the folder of a logger: the folder of the run
SHARDED = "zoo.sharding.strategy.FullySharded"
CLASSES = {  # option -> {short name: class}; only a class has options for the parser
    "trainer.strategy": {"fsdp2": SHARDED, "FullySharded": SHARDED, "ddp": "DDPStrategy"},
    "trainer.profiler": {"simple": "SimpleProfiler", "advanced": "AdvancedProfiler", "pytorch": "PyTorchProfiler"},
}
MAX_CONFIG_BYTES = 1 << 20
QUOTES = "'\""


@dataclass
class Arguments:
    """The parts of a command line that are read before the parser runs.

    Args:
        words: the words after the verb, with each config's name replaced by its file.
        values: those of `ckpt_path` and `output_dir`, where given, and of `model.weights` on the command line.
        class_paths: all class names given for model and data, in order; the last one is used.
        keys: (dotted key, where it was given: a config's path, or "" for the command line).
        settings: dotted key without "init_args" -> its last value.
        automatic_from: number of words up to the one that says `automatic: true`; None if none does.
    """

    words: list[str] = field(default_factory=list)
    values: dict[str, str | None] = field(default_factory=dict)
    class_paths: dict[str, list[str]] = field(default_factory=lambda: {"model": [], "data": []})
    keys: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    automatic_from: int | None = None

    def weights_alone(self) -> str | None:
        """`--model.weights zoo:NAME` without a config or class: the settings are then read from the weights."""
        weights = self.values.get("model.weights")
        return weights if is_project_weights(weights) and not any(self.class_paths.values()) else None


def read_arguments(words: list[str]) -> Arguments:
    """Read the words after the verb.

    Raises:
        UnknownWordError: a config does not exist, or a word is neither an option nor the value of one.
        UserError: a config is not valid YAML, or holds no settings; or a word is not UTF-8.
    """
    arguments = Arguments()
    refuse_non_utf8(words)
    rest = list(words)
    before = None  # option and value before the present word
    while rest:
        # A config is given as --config NAME, --config=NAME, -c NAME or -cNAME.
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if option.startswith("-") and option[1:].split(".")[0] in LIKE_CONFIG:
            raise UnknownWordError(f"there is no option {option}; did you mean -{option}?")
        is_config = option in ("--config", "-c") or (word.startswith("-c") and not word.startswith("--"))
        if is_config:
            if word.startswith("-c") and len(word) > 2 and not equals:
                value = word[2:]  # -cNAME
            elif not equals:
                value = rest.pop(0) if rest else ""
            path, settings = load_config(value)
            complete = _with_group_files(settings, os.path.dirname(path) if os.path.isfile(path) else "")
            complete = _with_log_folder(complete)
            arguments.words.append(f"--config={path if complete == settings else _inline(complete)}")
            _add_settings(arguments, complete, source=path)
            if "automatic" in complete:
                arguments.automatic_from = len(arguments.words) if complete["automatic"] is True else None
        elif option.startswith("--"):
            # An option's value follows after "=" or as the next word.
            follows = bool(rest) and not rest[0].startswith("--") and not (option in FLAGS and rest[0] in ("-c", "-h"))
            # The settings of a group may be in a file: --model FILE.
            group = option.removeprefix("--")
            path = value if equals else rest[0] if follows else ""
            if group in GROUPS and os.path.exists(path) and not os.path.isdir(path):
                settings = {group: _read_group(path, f"--{group}")}
                arguments.words.append(f"--config={_inline(settings)}")
                _add_settings(arguments, settings, source=path)
                rest = rest[0 if equals else 1 :]
                continue
            if option in LOGGER_OPTIONS:
                given = value if equals else path
                if _needs_folder(given):
                    rest.insert(0 if equals else 1, f"{LOGGER}.save_dir={RUN_FOLDER}")
                elif given.startswith(("[", "{")):  # a list or mapping, as in a config
                    given = _with_log_folder_in_text(given)
                    word, rest = (f"{option}={given}", rest) if equals else (word, [given, *rest[1:]])
            # A flag without value means true.
            if option in FLAGS and not equals and not follows:
                word = f"{option}=true"
            arguments.words.append(word)
            # The next word is this option's value.
            if not equals and follows:
                value = rest.pop(0)
                # Joined, because the parser would take a value that begins with a dash for an option.
                arguments.words[-1:] = [f"{word}={value}"] if value.startswith("-") else [word, value]
            before = (option, value)
            _add_option(arguments, option.removeprefix("--"), value)
            if option == "--automatic":
                is_true = (value or "true").lower() == "true"
                arguments.automatic_from = len(arguments.words) if is_true else None
        elif word == "-h":
            arguments.words.append(word)
        elif word.startswith("-"):  # a mistyped option, which the parser reports
            arguments.words += [word, *rest]
            break
        else:
            raise UnknownWordError(describe_stray_word(word, before))
    _name_classes(arguments)
    return arguments


def _name_classes(arguments: Arguments) -> None:
    """Where `fsdp2`, `ddp` or `simple` has options, replace it in the words by its class."""
    for key, classes in CLASSES.items():
        option, name = f"--{key}", arguments.settings.get(key)
        given = [i for i, word in enumerate(arguments.words) if word.startswith(f"{option}.")]
        if not given or not isinstance(name, str) or name not in classes:
            continue
        words = arguments.words
        named = [i for i, word in enumerate(words) if word.partition("=")[0] == option]
        drop = {i + extra for i in named for extra in range(1 if "=" in words[i] else 2)}
        kept = [word for i, word in enumerate(words[given[0] :], given[0]) if i not in drop]
        before = [word for i, word in enumerate(words[: given[0]]) if i not in drop]
        arguments.words = [*before, f"{option}={classes[name]}", *kept]


def load_config(value: str) -> tuple[str, dict[str, Any]]:
    """The path and the settings of a config given by name, as a file, or as YAML text.

    Raises:
        UnknownConfigError: the config does not exist.
        UserError: the file is not a regular file, is larger than 1 MiB or not UTF-8; or it is not valid YAML.
    """
    # A config's name contains none of these signs of YAML; a file's name may.
    if any(sign in value for sign in ("{", "\n", ": ")) and not os.path.exists(value):
        return value, _parse_config(value, f"the config {shorten(value)}")
    path = str(find_config(value))
    return path, _read_config(path)


def _read_config(path: str) -> dict[str, Any]:
    return _parse_config(read_text(path, max_bytes=MAX_CONFIG_BYTES), path)


def _parse_config(text: str, name: str) -> dict[str, Any]:
    """The settings in a config's text; `name` is what messages call it."""
    try:
        settings = load_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not valid YAML{describe_yaml_error(error)}") from error
    if not isinstance(settings, dict | None):
        raise UserError(f"{name} holds no settings: a config is a mapping of names to values")
    for key in settings or {}:
        if not isinstance(key, str):
            raise UserError(f"{name} has the setting {shorten(key)}: the name of a setting must be a text")
    return settings or {}


def _with_group_files(settings: dict[str, Any], folder: str) -> dict[str, Any]:
    """The settings of a config with those of the files that it names, as in `model: FILE`, relative to `folder`."""
    paths = {name: os.path.join(folder, value) for name, value in settings.items() if isinstance(value, str)}
    files = {name: path for name, path in paths.items() if name in GROUPS and os.path.exists(path)}
    return settings | {name: _read_group(path, name) for name, path in files.items() if not os.path.isdir(path)}


def _with_log_folder(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a config, whose loggers without a `save_dir` write into the run's folder."""
    trainer = settings.get("trainer")
    if not isinstance(trainer, dict) or not trainer.get("logger"):
        return settings
    logger = trainer["logger"]
    completed = _in_run_folder(logger)
    return settings if completed == logger else {**settings, "trainer": {**trainer, "logger": completed}}


def _with_log_folder_in_text(text: str) -> str:
    """The same for the value of an option, a list or mapping as YAML text."""
    try:
        logger = load_yaml(text)
    except yaml.YAMLError:
        return text  # the parser reports it
    completed = _in_run_folder(logger)
    return text if completed == logger else _inline(completed).strip()


def _in_run_folder(logger: Any) -> Any:
    """The settings of one logger or of several, with the run's folder for those that need one and are given none."""
    if isinstance(logger, list):
        return [_in_run_folder(one) for one in logger]
    spec = {"class_path": logger} if isinstance(logger, str) else logger
    arguments = spec.get("init_args") or {} if isinstance(spec, dict) else None
    if not isinstance(arguments, dict) or not _needs_folder(spec.get("class_path")):
        return logger
    return {**spec, "init_args": {"save_dir": RUN_FOLDER, **arguments}}


def _needs_folder(name: Any) -> bool:
    """Whether a logger, by its name or import path, cannot be built without a folder."""
    package, _, last = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    return last in LOGGERS and (not package or package.startswith("lightning.pytorch.loggers"))


def _read_group(path: str, name: str) -> dict[str, Any]:
    """The settings of one group in a file. Raises UserError if the file is a config with settings of all groups."""
    settings = _read_config(path)
    if {"model", "trainer"} & settings.keys():
        raise UserError(f"{name} names {path}, a config with settings of all groups: give it as --config {path}")
    return settings


def _inline(settings: Any) -> str:
    """The settings as YAML text in one line, which `--config` accepts in place of a file."""
    return yaml.safe_dump(settings, default_flow_style=True, allow_unicode=True, sort_keys=False, width=float("inf"))


def _load_mapping(value: str) -> dict[str, Any]:
    """A mapping written as YAML or JSON text; an empty one for other text, which the parser reports."""
    try:
        settings = load_yaml(value)
    except yaml.YAMLError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _add_settings(arguments: Arguments, settings: dict[str, Any], source: str) -> None:
    """Add the settings of a config; `source` is its path, or its text."""
    for name in READ:
        if name in settings:
            value = settings[name]
            if not isinstance(value, str | None):
                raise UserError(f"{source}: {name} must be a text, not {shorten(value)}: put it in quotes")
            arguments.values[name] = value
    for group in GROUPS:
        _check_group(settings.get(group), f"{shorten(source, 200).strip(QUOTES)}: {group}")
    for key, value in _flatten(settings):
        _add_setting(arguments, key, value, source)


def _check_group(value: Any, name: str) -> None:
    """Raises UserError if a group of settings is neither a mapping with texts as keys, nor a class, nor null."""
    if not isinstance(value, dict | str | None):
        raise UserError(f"{name} must be a mapping of names to values, not {shorten(value)}")
    if not isinstance(value, dict):
        return
    if wrong := [key for key in value if not isinstance(key, str)]:
        raise UserError(f"{name} has the setting {shorten(wrong[0])}: the name of a setting must be a text")
    if not isinstance(value.get("class_path", ""), str | None):
        raise UserError(f"{name}.class_path must be the name of a class, not {shorten(value['class_path'])}")
    for part in ("init_args", "dict_kwargs"):
        if isinstance(value.get(part), str):
            raise UserError(f"{name}.{part} must be a mapping of names to values, not {shorten(value[part])}")
        _check_group(value.get(part), f"{name}.{part}")


def _add_option(arguments: Arguments, key: str, value: str) -> None:
    if key in (*READ, "model.weights"):
        arguments.values[key] = _text_or_none(value)
    if key.split(".")[0] in arguments.class_paths and value.startswith("{"):  # --model '{"class_path": ...}'
        settings = _load_mapping(value)
        for name, entry in _flatten(settings, f"{key}."):
            _add_setting(arguments, name, entry)
        if settings:
            return
    _add_setting(arguments, key, value)


def _add_setting(arguments: Arguments, key: str, value: Any, source: str = "") -> None:
    """Add one setting by its dotted key. Raises UserError if it is the class of model or data and is empty."""
    arguments.keys.append((key, source))
    arguments.settings[key.replace(".init_args.", ".")] = value
    group = key.removesuffix(".class_path")
    if group in arguments.class_paths and isinstance(value, str):
        if not value.strip():
            raise UserError(f"--{key} is empty: give the name of a class that `zoo list` shows")
        arguments.class_paths[group].append(value)


def _flatten(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and the value of every entry of nested mappings, without the mappings themselves."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def option_parts(key: str) -> list[str]:
    """The parts of a dotted key as on the command line: "model" and "dim" of "model.init_args.dim"."""
    return [part for part in key.split(".") if part not in ("init_args", "dict_kwargs")]


def _text_or_none(value: str) -> str | None:
    """A word as jsonargparse reads it for an optional string: "null" is None."""
    parser = ArgumentParser()
    parser.add_argument("--value", type=str | None)
    return parser.parse_args([f"--value={value}"]).value
