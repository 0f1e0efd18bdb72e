"""Choice: one setting that a rule derives from the data, with its reason."""

from typing import Any, NamedTuple


class Choice(NamedTuple):
    """A setting that was chosen from the data.

    Args:
        option: its name on the command line, without dashes: "model.dim".
        value: the value chosen.
        reason: why, in a few words.
    """

    option: str
    value: Any
    reason: str
