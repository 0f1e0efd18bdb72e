"""Choice: one setting that a rule derives from the data, with its reason; what the rules of several models share."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from zoo.errors import UserError

GROUPS = ("model", "data", "trainer", "checkpoint")
PREPARATION_SHARE = 0.25  # of the time of a run with a time limit: teachers, synthetic rows, bags of words


class Choice(NamedTuple):
    """A setting that was chosen from the data.

    Args:
        option: its name on the command line, without dashes: "model.dim".
        value: the value chosen.
        reason: why, in a few words.
        replaces: a value of a config that the choice replaces; one that is given on the command line stays.
    """

    option: str
    value: Any
    reason: str
    replaces: Any = None


def settings_of(choices: Iterable[Choice]) -> dict[str, Any]:
    """The chosen values by option."""
    return {choice.option: choice.value for choice in choices}


def choose_width(n_rows: int, given: Mapping[str, Any], least: int = 64) -> Iterator[Choice]:
    """Width of a transformer by the number of training rows, and heads of about 16 dimensions each.

    Args:
        n_rows: number of training rows.
        given: the settings that are already decided, by option.
        least: smallest width that is chosen.
    """
    dim = max(least, 64 if n_rows < 20_000 else 128 if n_rows < 200_000 else 256)
    yield Choice("model.dim", dim, f"{n_rows:,} training rows")
    used = given.get("model.dim", dim)
    heads = next((n for n in range(used // 16, 1, -1) if used % (2 * n) == 0), 1)  # a head has an even size
    yield Choice("model.n_heads", heads, f"of {used // heads} dimensions each")


def choose_monitor(n_targets: int) -> Iterator[Choice]:
    """The metric that decides which weights are best, for several targets: one that does not depend on their units."""
    if n_targets > 1:
        reason = f"{n_targets} targets, each relative to the error of its median"
        yield Choice("checkpoint.monitor", "val_relative_mae", reason, replaces="val_mae")


def by_group(settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by option ("model.dim") as arguments of model, data, trainer and checkpoint: {"model": {"dim": 64}}.

    Raises:
        UserError: an option belongs to none of these groups.
    """
    groups: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for option, value in settings.items():
        group, _, name = option.partition(".")
        if group not in groups or not name:
            names = f"{', '.join(GROUPS[:-1])} or {GROUPS[-1]}"
            raise UserError(f"{option!r} is not a setting of {names}: name it as in 'model.dim'")
        groups[group][name] = value
    return groups


def given_arguments(data: Any) -> dict[str, Any]:
    """The arguments that were given to the constructor of a data module, with their values."""
    return {name: data.hparams[name] for name in getattr(data, "given_arguments", ()) if name in data.hparams}


def rounded_down(number: float) -> int:
    """A number of at least 0 as an integer with two significant digits."""
    unit = 10 ** max(0, len(str(int(number))) - 2)
    return int(number // unit * unit)
