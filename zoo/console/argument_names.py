"""Messages of the command line in terms of Python: `--model.number_digits 10` becomes `number_digits=10`."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.errors import UserError

# An option, and its value: a number, or a word at the end of a clause or before another option.
_OPTION = re.compile(
    r"--(?:model|data|trainer)\.(?P<name>\w+)(?P<value> (?=[-.\d])| (?!and\b|or\b|to\b)(?=[\w.:]+(?:$|[;,)]| --)))?"
)
_in_python = False


def with_argument_names(message: str) -> str:
    """A message with the names of arguments in place of those of options of model, data and trainer."""
    return _OPTION.sub(lambda option: option["name"] + ("=" if option["value"] else ""), message)


@contextmanager
def argument_names() -> Iterator[None]:
    """Within it, errors that the user can fix, warnings and notices name arguments instead of options."""
    global _in_python
    with warnings.catch_warnings():
        show, before, _in_python = warnings.showwarning, _in_python, True

        def show_with_names(message: Any, *where: Any) -> None:
            # The message is a warning, whose class takes one text.
            text = with_argument_names(str(message))
            show(message if text == str(message) else type(message)(text), *where)

        warnings.showwarning = show_with_names  # type: ignore[assignment]
        try:
            yield
        except UserError as error:
            if (text := with_argument_names(str(error))) == str(error):
                raise
            raise type(error)(text) from error
        finally:
            _in_python = before


@rank_zero_only
def print_notice(message: str) -> None:
    """Print a message to standard error, on one rank."""
    print(f"zoo: {with_argument_names(message) if _in_python else message}", file=sys.stderr)
