"""Columns of numbers brought to a common scale, which is learnt from training data and kept with the weights."""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import UserError

ScaleKind = Literal["asinh", "standard", "raw"]


class Scale(nn.Module):
    """x (..., K) <-> z (..., K), column by column: z = (x - centre) / spread, or for "asinh" the asinh of that.

    "standard" has mean and standard deviation. "asinh" has the median and twice the distance between the quartiles,
    which is as far as Tukey's fences lie from the median of a symmetric column: linear within them and logarithmic
    beyond, it lets a few huge targets neither decide the loss nor set the unit of the rest. "raw" is x itself.
    """

    centre: Tensor  # (K,) float64
    spread: Tensor  # (K,) float64

    def __init__(self, columns: int, kind: ScaleKind = "standard") -> None:
        super().__init__()
        if kind not in get_args(ScaleKind):
            raise UserError(f"a scale is one of {', '.join(get_args(ScaleKind))}, not {kind!r}")
        self.kind = kind
        self.register_buffer("centre", torch.zeros(columns, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(columns, dtype=torch.float64))

    def fit(self, column_values: np.ndarray) -> None:
        """Learn from (N, K); a column without spread is only centred."""
        if self.kind == "raw":
            return
        centre, spread = column_values.mean(0), column_values.std(0)
        if self.kind == "asinh":
            low, centre, high = np.percentile(column_values, [25, 50, 75], axis=0)
            spread = np.where(high > low, 2 * (high - low), spread)
        self.centre.copy_(torch.from_numpy(centre))
        self.spread.copy_(torch.from_numpy(np.where(spread > 0, spread, 1.0)))

    def forward(self, x: Tensor) -> Tensor:
        z = (x.double() - self.centre) / self.spread
        return (z.asinh() if self.kind == "asinh" else z).float()

    def inverse(self, z: Tensor) -> Tensor:
        """z (..., K) back to the columns' own unit, in float64."""
        x = z.double()
        return (x.sinh() if self.kind == "asinh" else x) * self.spread + self.centre
