"""Whether a model can tell its training targets apart: distinct values before and after they are represented in it."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.training.number_range import evenly_spaced

Floats = NDArray[np.floating[Any]]
Represent = Callable[[Floats], Floats]  # targets (N, K) to what the model sees of them, (N, K)

QUANTILES = 100  # quantiles of the distinct targets that a model should distinguish
MANY = 10  # rows from which on a constant target is reported
ENOUGH = 0.8  # share of the quantiles that must stay distinct


class Merged(NamedTuple):
    """An objective whose targets become too few distinct values.

    Args:
        objective: its number, from 0.
        quantiles: (Q,) up to 100 of its distinct targets, evenly spaced in their order.
        before: number of its distinct targets.
        after: number of values that these become.
    """

    objective: int
    quantiles: Floats
    before: int
    after: int

    def describe(self, n_objectives: int) -> str:
        """The beginning of a warning."""
        which = f" of objective {self.objective + 1}" if n_objectives > 1 else ""
        share = f"{100 * self.after / self.before:.2g} %"
        values = f"{self.after} distinct value{'s' * (self.after > 1)}"
        return f"the {self.before} distinct training targets{which} become {values} ({share})"


def find_merged(targets: Floats, represented: Floats) -> list[Merged]:
    """The objectives of which too few quantiles stay distinct, from targets (N, K) and what they become (N, K).

    Targets that are NaN or infinite do not count.
    """
    merged = []
    for k in range(targets.shape[1]):
        is_finite = np.isfinite(targets[:, k])
        values, first = np.unique(targets[is_finite, k], return_index=True)
        if len(values) < 2:
            continue
        seen = represented[is_finite, k][first]  # what each distinct target becomes
        chosen = evenly_spaced(len(values), QUANTILES)
        if len(np.unique(seen[chosen])) < ENOUGH * len(chosen):
            merged.append(Merged(k, values[chosen], len(values), len(np.unique(seen))))
    return merged


def warn_of_constant(targets: Floats) -> None:
    """Warn where all training targets (N, K) of an objective, at least 10, are equal. NaN does not count."""
    for k in range(targets.shape[1]):
        column = targets[~np.isnan(targets[:, k]), k]
        if len(column) >= MANY and (column == column[0]).all():
            which = f" of objective {k + 1}" if targets.shape[1] > 1 else ""
            warnings.warn(
                f"all {len(column)} training targets{which} are {column[0]:g}: the model can learn nothing but this "
                "number; choose another column of targets, or other rows",
                stacklevel=3,
            )


def best_setting(quantiles: Floats, settings: Iterable[tuple[str, Represent]]) -> str | None:
    """The first of the settings that keeps enough of the quantiles (Q,) distinct, else the one that keeps most.

    Args:
        quantiles: distinct targets.
        settings: for each setting its name and what it makes of targets (Q, 1).

    Returns:
        The setting's name; None if none keeps two values distinct.
    """
    best, most = None, 1
    for name, represent in settings:
        count = len(np.unique(represent(quantiles[:, None])))
        if count >= ENOUGH * len(quantiles):
            return name
        if count > most:
            best, most = name, count
    return best
