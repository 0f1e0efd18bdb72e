"""Points of two-dimensional shapes that a text names, to test densities of two objectives; and the energy distance.

A text is `moons, centre +1.2 -0.4, scale 0.5`; its two numbers are a random point of that shape.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zoo.errors import check_counts

Points = NDArray[np.float64]  # (N, 2)

NOISE = 0.03  # standard deviation that is added to both coordinates of a shape of scale 1


def _spiral(t: Points, side: Points) -> Points:
    return 0.1 * (1 + 9 * t) * np.array([np.cos(4 * np.pi * t), np.sin(4 * np.pi * t)])


def _moons(t: Points, side: Points) -> Points:
    upper = np.array([np.cos(np.pi * t) - 0.25, np.sin(np.pi * t) - 0.25]) * 0.75
    return np.where(side < 0.5, upper, -upper)


def _square(t: Points, side: Points) -> Points:
    along, across = 2 * t - 1, np.where(side < 0.5, -1.0, 1.0)
    return 0.8 * np.where(side % 0.5 < 0.25, np.array([along, across]), np.array([across, along]))


def _zigzag(t: Points, side: Points) -> Points:
    return np.array([2 * t - 1, 0.4 - 0.8 * np.abs((4 * t) % 2 - 1)])


SHAPES: dict[str, Callable[[Points, Points], Points]] = {
    "spiral": _spiral,
    "moons": _moons,
    "square": _square,
    "zigzag": _zigzag,
}


class Shape(NamedTuple):
    """A shape with its centre and scale.

    Args:
        name: one of SHAPES.
        x: x coordinate of the centre.
        y: y coordinate of the centre.
        scale: about half the width.
    """

    name: str
    x: float
    y: float
    scale: float

    @property
    def text(self) -> str:
        """The text that names the shape: a model's input."""
        return f"{self.name}, centre {self.x:+.1f} {self.y:+.1f}, scale {self.scale:.1f}"

    def draw(self, n: int, random: np.random.Generator) -> Points:
        """(n, 2) random points of the shape."""
        check_counts(n=n)
        points = SHAPES[self.name](random.random(n), random.random(n)).T + NOISE * random.normal(size=(n, 2))
        return np.array([self.x, self.y]) + self.scale * points


def draw_shapes(n: int, random: np.random.Generator) -> list[Shape]:
    """Shapes with random names, centres in [-2, 2] x [-2, 2] with one decimal, and scales 0.5 or 1."""
    check_counts(n=n)
    names = random.choice(list(SHAPES), n)
    centres, scales = random.integers(-20, 21, (n, 2)) / 10, random.choice([0.5, 1.0], n)
    return [
        Shape(str(name), float(x), float(y), float(scale))
        for name, (x, y), scale in zip(names, centres, scales, strict=True)
    ]


def energy_distance(a: Points, b: Points) -> float:
    """Energy distance between two distributions, estimated from their samples (N, D) and (M, D).

    2 E|A - B| - E|A - A'| - E|B - B'| with Euclidean distances (Szekely and Rizzo 2013), 0 for equal distributions, in
    the unit of the numbers. Different samples are paired: the estimate is unbiased and may be slightly negative.
    """
    from scipy.spatial.distance import cdist

    within = [cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return float(2 * cdist(a, b).mean() - sum(within))
