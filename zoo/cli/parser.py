"""An argument parser whose errors are one sentence, with the near name where a name was mistyped."""

import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from zoo.console.messages import near, one_sentence
from zoo.datamodules import ZooDataModule
from zoo.training.module import ZooModule


class ZooParser(LightningArgumentParser):
    """LightningArgumentParser with readable errors; exit code 2, as argparse has it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if os.environ.get("ZOO_DEBUG") and ex is not None:
            raise ex
        print(f"zoo: {self.sentence(message)}", file=sys.stderr)
        sys.exit(2)

    def sentence(self, message: str) -> str:
        """The sentence in jsonargparse's message, and what the user probably meant."""
        if found := re.search(r"unrecognized arguments: (\S+)", message):
            return f"there is no option {found[1].split('=')[0]}" + near(found[1].split("=")[0], self._options())
        if found := re.search(r"ption '([\w.]+)' is not accepted|not accept option '([\w.]+)'", message):
            name = found[1] or found[2]
            return f"there is no setting {name!r}" + near(name, self._options(), prefix="")
        if found := re.search(r"dot import path string: (\S+)", message):
            names = [c.__name__ for base in (ZooModule, ZooDataModule) for c in _subclasses(base)]
            return f"there is no model or data class {found[1]!r}" + near(found[1], names)
        if found := re.search(r"File does not exist: '([^']+)'", message):
            beside = [str(p.relative_to(Path.cwd())) for p in (Path.cwd() / "configs").rglob("*.yaml")]
            path = os.path.relpath(found[1])
            return f"there is no config file {path}" + near(path, beside)
        if "arguments are required" in message:
            return "a model and its data must be named: add --config FILE, one of those that `zoo list` shows"
        return one_sentence(message)

    def _options(self) -> set[str]:
        """Every dotted option of this parser and of its subcommand, those of all models and data included."""
        options = set(self._option_string_actions)
        for sub in (getattr(self._subcommands_action, "choices", None) or {}).values():
            options |= set(sub._option_string_actions)
        for group, base in (("model", ZooModule), ("data", ZooDataModule)):
            for cls in _subclasses(base):
                parser = ArgumentParser()
                parser.add_class_arguments(cls, fail_untyped=False)
                options |= {f"--{group}.{name}" for name in parser.get_defaults().keys()}  # noqa: SIM118 - a Namespace
        return options


def _subclasses(base: type) -> list[type]:
    direct: list[type] = base.__subclasses__()
    return [c for c in direct if not c.__subclasses__()] + [c for d in direct for c in _subclasses(d)]
