"""UserError: an error that the user can fix, shown as one sentence; and checks of settings that raise it."""

from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any


class UserError(ValueError):
    """Wrong input, option or file. The message is one sentence that names it and the remedy."""


class Diverged(UserError):
    """Training has diverged: a loss, a gradient or a weight is not finite."""


def check_number(name: str, value: Any, range: str, is_inside: Callable[[Any], bool], whole: bool = False) -> None:
    """Check that a setting is a number inside its range.

    Args:
        name: name of the setting, for the message.
        value: value of the setting.
        range: the range in words, which complete the sentence "<name> must be ...".
        is_inside: whether a number is inside the range.
        whole: whether the number must be an integer.

    Raises:
        UserError: the value is not a number or outside the range; the message names setting, range and value.
    """
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not is_number or not (whole or _fits_a_double(value)):
        raise UserError(f"{name} must be {'a whole number, ' if whole else ''}{range}, not {value!r}")
    if not is_inside(value):
        raise UserError(f"{name} must be {range}, not {value}")


def _fits_a_double(value: Any) -> bool:
    try:
        float(value)
    except OverflowError:  # an integer of more than 308 digits
        return False
    return True


def check_counts(minimum: int = 1, **counts: Any) -> None:
    """Raises UserError if one of the named settings is not an integer of at least `minimum`."""
    for name, count in counts.items():
        check_number(name, count, f"at least {minimum}", lambda value: value >= minimum, whole=True)


def check_probability(name: str, value: Any) -> None:
    """Raises UserError if a setting is not in [0, 1)."""
    check_number(name, value, "in [0, 1)", lambda p: 0 <= p < 1)


def check_weight(name: str, value: Any) -> None:
    """Raises UserError if a setting is not a finite number of at least 0."""
    check_number(name, value, "a finite number of at least 0", lambda weight: 0 <= weight < float("inf"))


def check_positive(name: str, value: Any) -> None:
    """Raises UserError if a setting is not a finite number above 0."""
    check_number(name, value, "positive", lambda number: 0 < number < float("inf"))


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raises UserError if a setting is not one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def refuse_renamed(cls: type, arguments: Iterable[str]) -> None:
    """Raises UserError if one of the names of arguments is an old name in `cls.renamed_arguments`."""
    for name in arguments:
        if (new := cls.renamed_arguments.get(name)) is not None:  # type: ignore[attr-defined]
            remedy = f"is now called {new}" if new.isidentifier() else f"no longer exists: {new}".removesuffix(": ")
            raise UserError(f"the argument {name} of {cls.__name__} {remedy}")
