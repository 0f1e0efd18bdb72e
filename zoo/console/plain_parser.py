"""Parser of commands without options of models: errors are one sentence, and options cannot be abbreviated."""

import argparse
from typing import Any, NoReturn

from zoo.console.exit_codes import UsageError


class PlainParser(argparse.ArgumentParser):
    """argparse's parser with the zoo's errors; arguments as for `argparse.ArgumentParser`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        start, is_missing, names = message.partition("the following arguments are required: ")
        if is_missing and not start:
            raise UsageError(f"{self.prog} needs {names}: `{self.prog} --help` describes them")
        raise UsageError(message)
