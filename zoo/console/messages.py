"""One-sentence error messages, and suggestions for mistyped names."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from zoo.errors import UserError


def nearest(name: str, known: Iterable[str], cutoff: float = 0.7) -> str | None:
    """The known name most similar to `name`, or else one that it abbreviates or whose last dotted part is similar.

    Neither `name` itself nor, of an option, its group, as "--trainer" is the group of "--trainer.steps".
    """
    names = sorted(c for c in set(known) if c != name and not (c.startswith("--") and name.startswith(f"{c}.")))
    # Among the options of the same group only their last parts are compared: the group makes all of them similar.
    group, _, last = name.rpartition(".")
    same_group = {c.rpartition(".")[2]: c for c in names if group and c.rpartition(".")[0] == group}
    if close := get_close_matches(last, same_group, n=1, cutoff=cutoff):
        return same_group[close[0]]
    others = [candidate for candidate in names if candidate not in same_group.values()]
    if close := get_close_matches(name, others, n=1, cutoff=cutoff):
        return close[0]
    if extended := [candidate for candidate in names if candidate.startswith(name)]:
        return min(extended, key=len)
    by_last_part = {candidate.rpartition(".")[2].lstrip("-"): candidate for candidate in names}
    close = get_close_matches(last.lstrip("-"), by_last_part, n=1, cutoff=cutoff)
    return by_last_part[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """ "; did you mean NAME?" for the nearest known name; `otherwise` where none is similar."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else otherwise


def one_sentence(message: str) -> str:
    """A message of several lines as one line."""
    return " ".join(message.split())


def refuse_non_utf8(words: Iterable[str]) -> None:
    """Raises UserError if a word of the command line contains bytes that are not UTF-8.

    Such a path could neither be stored in a checkpoint or config nor be printed.
    """
    for word in words:
        if any("\udc80" <= letter <= "\udcff" for letter in word):  # how Python reads these bytes
            shown = word.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise UserError(f"{shown} contains bytes that are not UTF-8: rename the file, or give the text in UTF-8")


def silence_lightning() -> None:
    """Drop Lightning's informational messages: `generate` prints only text, and an error is one sentence."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # the report that the user wants
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    warnings.filterwarnings("ignore", message="Precision .* is not supported by the model summary")
    warnings.filterwarnings("ignore", message="You have overridden `on_before_batch_transfer`")  # on purpose


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """For training from Python: `silence_lightning`, and no advice of Lightning on loader processes and intervals."""
    from lightning.pytorch.utilities.warnings import PossibleUserWarning

    with warnings.catch_warnings():
        silence_lightning()
        warnings.simplefilter("ignore", PossibleUserWarning)
        yield
