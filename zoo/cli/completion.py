"""`zoo completion SHELL`: a script with which the shell completes verbs, options, configs and paths.

The script holds all names, so that completion starts no Python. It is written by shtab, the extra `completion`.
"""

import argparse
import typing
from collections.abc import Callable
from typing import Any

from zoo.cli.command_line import ZooCLI
from zoo.cli.config_names import config_files
from zoo.cli.consolidate import consolidate_parser
from zoo.cli.export import export_parser
from zoo.cli.overview import VERBS, list_parser
from zoo.cli.pull import pull_parser
from zoo.cli.push import push_parser
from zoo.cli.trainer import ZooTrainer
from zoo.errors import UserError
from zoo.export.formats import FORMATS
from zoo.private_apis.jsonargparse_api import Option, class_options, options
from zoo.registry import DATA_MODULES, MODELS, load_class

SHELLS = ("bash", "zsh", "tcsh")
FILES = ("ckpt_path", "data_dir", "weights", "tokenizer", "embeddings", "data", "path", "text_path")  # last parts
FOLDERS = ("output_dir", "cache_dir", "dirpath", "folder")
POSITIONAL = ("destination", "output", "base")  # further files of verbs that build no model
PLAIN_PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "consolidate": consolidate_parser,
    "export": export_parser,
    "list": list_parser,
    "pull": pull_parser,
    "push": push_parser,
}
USAGE = (
    f"usage: zoo completion {'|'.join(SHELLS)}\n\nFor bash: zoo completion bash > ~/.zoo-completion; "
    "echo '. ~/.zoo-completion' >> ~/.bashrc"
)


def print_completion(words: list[str]) -> None:
    """Print the completion script of a shell.

    Args:
        words: the words after `completion`: the name of a shell.

    Raises:
        UserError: it is none of `SHELLS`, or shtab is not installed.
    """
    if words and words[0] in ("-h", "--help"):
        print(USAGE)
        return
    if len(words) != 1 or words[0] not in SHELLS:
        raise UserError(f"zoo completion needs the name of a shell: {', '.join(SHELLS)}")
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise UserError("zoo completion needs the package shtab: pip install '.[completion]'") from error
    print(shtab.complete(command_parser(), shell=words[0]))


def command_parser() -> argparse.ArgumentParser:
    """A parser with the verbs and all their options, whose actions say how a value is completed; it parses nothing."""
    parser = argparse.ArgumentParser("zoo", add_help=False)
    verbs = parser.add_subparsers()
    of_classes = [
        option._replace(name=option.name.replace("--", f"--{group}.", 1))
        for group, names in (("model", MODELS), ("data", DATA_MODULES))
        for name in names
        for option in class_options(load_class(name))
    ]
    parsers = _Parsers().parsers
    for verb, description in VERBS.items():
        # Verbs that build no model have a complete parser already.
        of_verb = verbs.add_parser(
            verb, help=description, add_help=False, parents=[_plain_parser(verb)] if verb in PLAIN_PARSERS else []
        )
        if verb == "completion":
            of_verb.add_argument("shell", choices=SHELLS)
        seen = set()
        for option in [*options(parsers[verb]), *of_classes] if verb in parsers else []:
            if option.name not in seen and not option.name.endswith("+"):
                seen.add(option.name)
                _add(of_verb, option)
    return parser


def _plain_parser(verb: str) -> argparse.ArgumentParser:
    """The parser of a verb that builds no model, with the kinds of paths that its options take."""
    import shtab

    parser = PLAIN_PARSERS[verb]()
    for action in parser._actions:
        if action.dest in (*FILES, *FOLDERS, *POSITIONAL):
            action.complete = shtab.DIRECTORY if action.dest in FOLDERS else shtab.FILE  # type: ignore[attr-defined]
        elif action.dest == "format":
            action.choices = [*FORMATS]
    return parser


def _add(parser: argparse.ArgumentParser, option: Option) -> None:
    """Add an option to a parser, with the values that its type allows, or the kind of path that it takes."""
    import shtab

    help = " ".join(option.help.split()).split(". ")[0].replace("%", "%%")
    if option.name in ("-h", "--help"):
        parser.add_argument(option.name, action="store_true", help=help)
        return
    choices: Any = _choices(option)
    action: Any = parser.add_argument(option.name, help=help, choices=choices)
    last = option.name.rpartition(".")[2].lstrip("-")
    if choices is None and last in (*FILES, *FOLDERS):
        action.complete = shtab.FILE if last in FILES else shtab.DIRECTORY


def _choices(option: Option) -> list[str] | None:
    """The values of an option, where there are few."""
    if option.name in ("-c", "--config"):
        return list(config_files())
    if option.name in ("--model", "--data"):
        return list(MODELS if option.name == "--model" else DATA_MODULES)
    if option.type is bool:
        return ["true", "false"]
    types = [option.type, *typing.get_args(option.type)]
    literals = [value for one in types if typing.get_origin(one) is typing.Literal for value in typing.get_args(one)]
    return [str(value) for value in literals] or None


class _Built(Exception):
    """The parsers are built, and nothing else is wanted."""


class _Parsers(ZooCLI):
    """Build the parsers of all verbs of the Trainer, and stop."""

    def __init__(self) -> None:
        try:
            super().__init__(["fit"])
        except _Built:
            self.parsers = {verb: self.verb_parser(verb) for verb in self.subcommands()}

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        of_fit = super().subcommands()["fit"]
        return {verb: {*of_fit, "return_predictions"} for verb in VERBS if hasattr(ZooTrainer, verb)}

    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise _Built
