"""Parser of commands without options of models: errors are one sentence, and options cannot be abbreviated."""

import argparse
import re
from typing import Any, NoReturn

from zoo.console.exit_codes import UsageError
from zoo.console.messages import did_you_mean


class PlainParser(argparse.ArgumentParser):
    """argparse's parser with the zoo's errors; arguments as for `argparse.ArgumentParser`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        start, is_missing, names = message.partition("the following arguments are required: ")
        if is_missing and not start:
            raise UsageError(f"{self.prog} needs {names}: `{self.prog} --help` describes them")
        start, is_unknown, words = message.partition("unrecognized arguments: ")
        option = words.split(" ")[0].partition("=")[0]
        if is_unknown and not start and option.startswith("-"):
            options = re.findall(r"(?<![\w-])--[\w.-]+", self.format_usage())
            hint = did_you_mean(option, options, f"; `{self.prog} --help` shows all")
            raise UsageError(f"there is no option {option}{hint}")
        raise UsageError(message)
