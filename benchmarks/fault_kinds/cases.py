"""A kind of fault, its cases, and what became of each case."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from zoo.console.exit_codes import describe, is_out_of_memory, is_user_error


class Outcome(NamedTuple):
    """The outcome of a case.

    Args:
        is_wanted: whether this is an outcome that the zoo promises.
        what: one or two words if it is wanted ("refused", "loaded", "resumed"), else a description of the failure.
        error: the error that the case measured, where it measures one.
    """

    is_wanted: bool
    what: str
    error: float | None = None


def wanted(what: str) -> Outcome:
    return Outcome(True, what)


def failure(what: str) -> Outcome:
    return Outcome(False, what)


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Args:
        name: as `--only` takes it.
        about: what is tried and what must happen, for the table.
        run: tries one case: (its number, its source of randomness, an empty folder) -> what became of it. Files that
            all cases share are in the parent of that folder.
        cases: number of cases of a full run.
        quick: number of cases of a quick run.
        seconds: time limit of one case.
        gigabytes: memory that a case may allocate, on top of what the libraries use.
        case_name: describes a case by its number, for messages.
    """

    name: str
    about: str
    run: Callable[[int, Random, Path], Outcome]
    cases: int
    quick: int
    seconds: float = 20.0
    gigabytes: float = 2.0
    case_name: Callable[[int], str] = lambda index: ""

    def random(self, seed: int, index: int) -> Random:
        """The source of randomness of one case, which depends on nothing else."""
        return Random(f"{seed} {self.name} {index}")


def outcome_of(call: Callable[[], Any], names: Sequence[str] = ()) -> Outcome:
    """The outcome of a call with damaged input: "loaded" if it returns, "refused" if it raises the right error.

    The right error is one that the command line shows as one sentence, and its sentence contains one of `names`.

    Args:
        call: the call.
        names: names of the file or argument that the sentence must name; empty where any sentence is right.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call()
    except BaseException as error:  # a panic of a Rust library is a BaseException
        if not is_user_error(error) or is_out_of_memory(error):
            return failure(f"raised {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        sentence = describe(error)
        if len(sentence) < 10:
            return failure(f"the message of {type(error).__name__} is not a sentence: {sentence!r}")
        if names and not any(name in sentence for name in names):
            return failure(f"the message names none of {', '.join(names)}: {sentence[:200]}")
        return wanted("refused")
    return wanted("loaded")
