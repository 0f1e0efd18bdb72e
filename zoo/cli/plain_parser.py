"""Parser of the verbs that build no model: errors are one sentence, and options cannot be abbreviated."""

import argparse
from typing import Any, NoReturn

from zoo.console.exit_codes import UsageError


class PlainParser(argparse.ArgumentParser):
    """argparse's parser with the zoo's errors; arguments as for `argparse.ArgumentParser`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)
