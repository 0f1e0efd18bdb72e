"""Random tables: named columns of many scales, and a target that is a random function of them.

The function is a weighted sum of linear, curved, periodic and interaction terms, trees and effects of categories. Every
draw is a function of the table's seed and the number of the block of rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

from zoo.datamodules.sources.table_rows import Cells
from zoo.training.random_streams import derive

Values = np.ndarray  # (N,) float64
Features = np.ndarray  # (N, F) float64, about standardised
Term = Callable[[Features], Values]

STATISTICS_ROWS = 1024  # rows from which means and deviations of a table are taken
SQUARE_ROOT_12 = 12**0.5  # a uniform number divided by its standard deviation


class Column(NamedTuple):
    """A column of a random table.

    Args:
        name: name of the column.
        kind: "normal", "uniform", "log", "integer", "power" (of two) or "category".
        location: location of the numbers.
        scale: scale of the numbers.
        spread: decades of a "log" column per standard deviation; number of values of the discrete kinds.
        effects: (C,) the hidden numbers of a category's values, and
        ends: (C,) the ends of their intervals in [0, 1]; None for other kinds.
    """

    name: str
    kind: str
    location: float
    scale: float
    spread: float
    effects: Values | None = None
    ends: Values | None = None

    def draw(self, latent: Values) -> tuple[list[Any], Values]:
        """Cells and features (N,) from standard normal numbers (N,)."""
        share = ndtr(latent)
        if self.effects is not None and self.ends is not None:
            value = np.minimum(np.searchsorted(self.ends, share), len(self.effects) - 1)
            return [f"{self.name}_{i}" for i in value], self.effects[value]
        if self.kind == "log":
            return self._words(self.scale * 10 ** (self.spread * latent)), latent
        if self.kind == "normal":
            return self._words(self.location + self.scale * latent), latent
        if self.kind == "uniform":
            return self._words(self.location + self.scale * share), (share - 0.5) * SQUARE_ROOT_12
        value = np.floor(share * self.spread)
        feature = (value - (self.spread - 1) / 2) * SQUARE_ROOT_12 / self.spread
        numbers = 2**value if self.kind == "power" else value + np.round(self.location)
        return [f"{number:.0f}" for number in numbers], feature

    @staticmethod
    def _words(numbers: Values) -> list[Any]:
        return [f"{number:.6g}" for number in numbers]


class RandomTable:
    """Columns and a function of them, from which rows are drawn without end.

    Args:
        name: start of the names of its columns.
        seed: seed of everything; equal arguments give equal tables and rows.
        max_columns: largest number of columns, at least 2.
    """

    def __init__(self, name: str, seed: int, max_columns: int = 12) -> None:
        self.name, self._seed = name, seed
        random = np.random.default_rng(derive(seed, "table"))
        n_columns = int(random.integers(2, max_columns + 1))
        self.columns = [_draw_column(f"{name}c{i}", random) for i in range(n_columns)]
        # Some tables have dependent columns: common factors, which some columns have a share of.
        self._factors = random.normal(size=(2, n_columns)) * (random.random(n_columns) < 0.5) * (random.random() < 0.5)
        # Some tables have missing cells.
        self._missing = random.uniform(0, 0.2, n_columns) * (random.random(n_columns) < 0.5) * (random.random() < 0.3)
        # The target is a function of some columns, with noise, in a unit of any magnitude.
        self._terms = _draw_terms(n_columns, random)
        self._noise = float(np.exp(random.uniform(np.log(0.01), np.log(0.3))))
        self._link = random.choice(["identity", "log", "bounded"], p=[0.65, 0.25, 0.1])
        self._scale = 10 ** random.uniform(-3, 4)
        self._location = random.choice([0.0, random.uniform(-3, 3)])
        self._decades = random.uniform(0.1, 0.8)
        self._statistics = [(0.0, 1.0)] * len(self._terms)
        self._mean, self._deviation = 0.0, 1.0
        _, features = self._draw_features(STATISTICS_ROWS, np.random.default_rng(derive(seed, "statistics")))
        values = [term(features) for _, term in self._terms]
        self._statistics = [(float(v.mean()), _deviation(v)) for v in values]
        total = self._function(features)
        self._mean, self._deviation = float(total.mean()), _deviation(total)

    def rows(self, block: int, n_rows: int) -> tuple[list[Cells], Values]:
        """Cells of `n_rows` rows, and their targets (N,) of three significant digits. Blocks are independent."""
        random = np.random.default_rng(derive(self._seed, "rows", block))
        cells, features = self._draw_features(n_rows, random)
        value = self._function(features) + self._noise * random.normal(size=n_rows)
        if self._link == "log":
            targets = self._scale * 10 ** (self._decades * value)
        elif self._link == "bounded":
            targets = self._scale / (1 + np.exp(-1.5 * value))
        else:
            targets = self._scale * (self._location + value)
        is_missing = random.random((n_rows, len(self.columns))) < self._missing
        is_missing[:, 0] = False  # no row is empty
        rows = [
            {column.name: None if gone else cell for column, cell, gone in zip(self.columns, values, gaps, strict=True)}
            for values, gaps in zip(zip(*cells, strict=True), is_missing, strict=True)
        ]
        return rows, np.array([float(f"{target:.2e}") for target in targets])

    def words(self) -> list[str]:
        """The words that only this table's texts have: names of columns and values of categories."""
        values = [f"{c.name}_{i}" for c in self.columns if c.effects is not None for i in range(len(c.effects))]
        return [f"{column.name}:" for column in self.columns] + [word + end for word in values for end in (",", "")]

    def _draw_features(self, n_rows: int, random: np.random.Generator) -> tuple[list[list[Any]], Features]:
        """Cells by column, and features (N, F)."""
        latent = random.normal(size=(n_rows, len(self.columns))) + random.normal(size=(n_rows, 2)) @ self._factors
        latent /= np.sqrt(1 + np.square(self._factors).sum(0))
        drawn = [column.draw(latent[:, i]) for i, column in enumerate(self.columns)]
        return [cells for cells, _ in drawn], np.stack([feature for _, feature in drawn], axis=1)

    def _function(self, features: Features) -> Values:
        """(N,) the function without noise, standardised."""
        total = np.zeros(len(features))
        for (weight, term), (mean, deviation) in zip(self._terms, self._statistics, strict=True):
            total += weight * (term(features) - mean) / deviation
        return (total - self._mean) / self._deviation


def _draw_column(name: str, random: np.random.Generator) -> Column:
    kind = str(
        random.choice(
            ["normal", "uniform", "log", "integer", "power", "category"], p=[0.2, 0.15, 0.25, 0.15, 0.05, 0.2]
        )
    )
    # Two digits of a number must show its deviation from the location.
    scale = 10 ** random.uniform(-4, 5)
    location = scale * random.choice([0.0, random.uniform(-3, 3)])
    if kind == "category":
        n = int(random.integers(2, 9))
        ends = random.dirichlet(np.full(n, 2.0)).cumsum()
        return Column(name, kind, 0.0, 1.0, n, random.normal(size=n), ends)
    if kind == "log":
        return Column(name, kind, 0.0, scale, random.uniform(0.2, 1.5))
    if kind in ("integer", "power"):
        return Column(
            name, kind, random.choice([0, 1, 10]), 1.0, int(random.integers(2, 40 if kind == "integer" else 12))
        )
    return Column(name, kind, location, scale, 1.0)


# ---- terms


def _deviation(values: Values) -> float:
    """The standard deviation; 1 of equal values, whose computed one can be tiny and not 0."""
    return float(values.std()) if np.ptp(values) > 0 else 1.0


def _draw_terms(n_columns: int, random: np.random.Generator) -> list[tuple[float, Term]]:
    """Weighted terms that read some of the columns; the first ones are read most."""
    order = random.permutation(n_columns)[: random.integers(2, n_columns + 1)]
    importance = random.exponential(size=len(order)) + 0.05
    makers = [_linear, _linear, _curve, _curve, _periodic, _trees, _trees, _interaction, _network]
    chosen = random.choice(len(makers), size=random.integers(1, 5))
    return [(random.exponential() + 0.1, makers[i](order, importance / importance.sum(), random)) for i in chosen]


def _one(columns: np.ndarray, importance: np.ndarray, random: np.random.Generator) -> int:
    return int(random.choice(columns, p=importance))


def _linear(columns: np.ndarray, importance: np.ndarray, random: np.random.Generator) -> Term:
    weights = random.normal(size=len(columns)) * importance
    return lambda x: x[:, columns] @ weights


def _curve(columns: np.ndarray, importance: np.ndarray, random: np.random.Generator) -> Term:
    """A parabola, a saturating or an exponential function of one column."""
    column, kind = _one(columns, importance, random), random.integers(3)
    centre, slope = random.normal(), random.choice([-1, 1]) * random.uniform(0.5, 3)
    if kind == 0:
        return lambda x: np.square(x[:, column] - centre)
    if kind == 1:
        return lambda x: np.tanh(slope * (x[:, column] - centre))
    return lambda x: np.exp(np.clip(slope / 2 * x[:, column], -4, 4))


def _periodic(columns: np.ndarray, importance: np.ndarray, random: np.random.Generator) -> Term:
    column, rate, phase = _one(columns, importance, random), random.uniform(1, 4), random.uniform(0, 2 * np.pi)
    return lambda x: np.sin(rate * x[:, column] + phase)


def _interaction(columns: np.ndarray, importance: np.ndarray, random: np.random.Generator) -> Term:
    """The product of two columns, or a column where another one is above a threshold."""
    a, b, threshold = _one(columns, importance, random), _one(columns, importance, random), random.normal()
    if random.random() < 0.5:
        return lambda x: x[:, a] * x[:, b]
    return lambda x: np.where(x[:, a] > threshold, x[:, b], 0.0)


def _network(columns: np.ndarray, importance: np.ndarray, random: np.random.Generator) -> Term:
    """A hidden layer of tanh with random weights."""
    weights = random.normal(size=(len(columns), 6)) * (2 * importance[:, None])
    bias, output = random.normal(size=6), random.normal(size=6)
    return lambda x: np.tanh(x[:, columns] @ weights * 2 + bias) @ output


def _trees(columns: np.ndarray, importance: np.ndarray, random: np.random.Generator) -> Term:
    """The sum of a few trees, each with one column and threshold per level."""
    depth, n_trees = int(random.integers(2, 5)), int(random.integers(1, 5))
    split_columns = random.choice(columns, p=importance, size=(n_trees, depth))
    thresholds, leaves = 0.8 * random.normal(size=(n_trees, depth)), random.normal(size=(n_trees, 2**depth))

    def term(x: Features) -> Values:
        total = np.zeros(len(x))
        for tree in range(n_trees):
            leaf = (x[:, split_columns[tree]] > thresholds[tree]) @ (2 ** np.arange(depth))
            total += leaves[tree, leaf]
        return total

    return term
