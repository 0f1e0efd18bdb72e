"""Search spaces: the text of `--space` as a setting and an Optuna distribution."""

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.trial import BaseTrial, FrozenTrial

from zoo.errors import UserError

FORMS = "write name=low:high, name=log:low:high or name=a,b,c"
LARGEST_INTEGER = 2**53  # up to which a float is exact
# Settings of `zoo fit` that a search sets itself, or that must be the same in all trials.
FIXED = ("output_dir", "ckpt_path", "checkpoint")


class Space(NamedTuple):
    """A setting and its values."""

    text: str  # as given, for messages
    name: str
    distribution: BaseDistribution

    def example(self) -> str:
        """The option `--name=value` of one of the values: the lowest number, or the first choice."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return f"--{self.name}={distribution.choices[0]}"
        assert isinstance(distribution, IntDistribution | FloatDistribution)
        return f"--{self.name}={distribution.low}"

    def suggest(self, trial: BaseTrial) -> str:
        """The option `--name=value` that a trial tries. Raises UserError if the study has other values of it."""
        try:
            return f"--{self.name}={self._draw(trial)}"
        except ValueError as error:  # another process has begun the study with another kind of values
            raise UserError(
                f"--space {self.text}: the study has other values of {self.name}; give the same ones, or another study"
            ) from error

    def _draw(self, trial: BaseTrial) -> Any:
        of = self.distribution
        if isinstance(of, CategoricalDistribution):
            return trial.suggest_categorical(self.name, of.choices)
        if isinstance(of, IntDistribution):
            return trial.suggest_int(self.name, of.low, of.high, log=of.log)
        assert isinstance(of, FloatDistribution)
        return trial.suggest_float(self.name, of.low, of.high, log=of.log)


def read_space(text: str) -> Space:
    """A search space from its text.

    Args:
        text: "name=a,b,c" for a choice, "name=low:high" or "name=log:low:high" for a number between the two, both
            included: a whole number where both are written without point and exponent, otherwise a float.

    Raises:
        UserError: the text is none of these, an end is not finite or not in order, or a choice is empty or repeated.
    """
    name, _, domain = text.partition("=")
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
        raise UserError(f"--space {text}: {FORMS}")
    if name.split(".")[0] in FIXED:
        raise UserError(f"--space {text}: {name} must be the same in all trials: give it as the option --{name}")
    if "," in domain:
        choices = domain.split(",")
        if "" in choices or len({*choices}) < len(choices):
            raise UserError(f"--space {text}: a choice is empty or repeated: {FORMS}")
        return Space(text, name, CategoricalDistribution(choices))
    between = re.fullmatch(r"(log:)?([^:]+):([^:]+)", domain)
    if between is None:
        raise UserError(f"--space {text}: {FORMS}")
    return Space(text, name, _numbers(text, between[2], between[3], is_log=between[1] is not None))


def _numbers(text: str, low: str, high: str, is_log: bool) -> BaseDistribution:
    """The distribution of the numbers between two ends."""
    try:
        ends = float(low), float(high)
    except ValueError:
        raise UserError(f"--space {text}: {FORMS}") from None
    # The samplers draw from high - low, which must not overflow either.
    if not all(map(math.isfinite, (*ends, ends[1] - ends[0]))):
        raise UserError(f"--space {text}: both ends, and their difference, must be finite numbers")
    if ends[0] > ends[1]:
        raise UserError(f"--space {text}: the lower end comes first: write {ends[1]:g}:{ends[0]:g}")
    if is_log and ends[0] <= 0:
        raise UserError(f"--space {text}: with log the lower end must be above 0")
    if not all(re.fullmatch(r"[+-]?[0-9]+", end) for end in (low, high)):
        return FloatDistribution(*ends, log=is_log)
    if max(map(abs, ends)) > LARGEST_INTEGER:
        raise UserError(f"--space {text}: whole numbers must be at most 2^53; write {ends[0]!r}:{ends[1]!r} for floats")
    return IntDistribution(int(low), int(high), log=is_log)


def read_spaces(texts: Iterable[str]) -> list[Space]:
    """Several search spaces; raises UserError also where two of them are of one setting."""
    spaces: dict[str, Space] = {}
    for space in map(read_space, texts):
        key = space.name.replace(".init_args.", ".")  # the two names of an option
        if key in spaces:
            raise UserError(f"--space {spaces[key].text} and --space {space.text} are of one setting: drop one of them")
        spaces[key] = space
    return list(spaces.values())


def check_same_spaces(spaces: Iterable[Space], earlier: Iterable[FrozenTrial], study_name: str) -> None:
    """Raises UserError if the spaces cannot be added to the trials of a study: other names, kinds or choices.

    The ends of a range may differ.

    Args:
        spaces: search spaces of this call.
        earlier: trials of the study, also those that failed.
        study_name: for messages.
    """
    remedy = f"give the same --space, or another --study and --output_dir than those of {study_name!r}"
    by_name = {space.name: space for space in spaces}
    for trial in earlier:
        # A trial that failed may be that of a call with a wrong name.
        if has_result(trial) and trial.params.keys() != by_name.keys():
            raise UserError(
                f"the study searches {', '.join(sorted(trial.params)) or 'nothing'}, not {', '.join(sorted(by_name))}: "
                f"{remedy}"
            )
        for name, distribution in trial.distributions.items():
            if (space := by_name.get(name)) is not None:
                try:
                    check_distribution_compatibility(distribution, space.distribution)
                except ValueError as error:
                    raise UserError(
                        f"--space {space.text}: the study has other choices or another kind of number for {name}: "
                        f"{remedy}"
                    ) from error


def has_result(trial: FrozenTrial) -> bool:
    """Whether a trial has ended with a score, or was pruned."""
    return trial.state.name in ("COMPLETE", "PRUNED")
