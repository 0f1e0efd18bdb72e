"""Invertible scaling of numeric columns, fitted on training data and stored with the weights."""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.private_apis.torch_api import FixedBuffers
from zoo.training.number_range import unit_of

ScaleKind = Literal["asinh", "standard", "raw"]


class Scale(FixedBuffers):
    """Scales x (..., K) to z (..., K) column by column: z = (x - centre) / spread, or asinh of that for kind "asinh".

    Args:
        columns: K.
        kind: "standard" uses mean and standard deviation. "asinh" uses the median and twice the interquartile range,
            the distance from the median to Tukey's fences in a symmetric column: z is linear between the fences and
            logarithmic beyond, so that a few huge targets neither dominate the loss nor determine the unit of the
            others. "raw" leaves x unchanged.

    Raises:
        UserError: the kind is unknown.
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
        """Compute centre and spread from values (N, K). A constant column gets spread 1."""
        if self.kind == "raw":
            return
        units = np.array([unit_of(column) for column in column_values.T])  # (K,)
        column_values = column_values / units
        centre, spread = column_values.mean(0), column_values.std(0)
        if self.kind == "asinh":
            low, centre, high = np.percentile(column_values, [25, 50, 75], axis=0)
            spread = np.where(high > low, 2 * (high - low), spread)
        # The mean of equal numbers can be rounded, and their deviation from it is then tiny and not 0.
        is_constant = np.ptp(column_values, axis=0) == 0
        centre, spread = np.where(is_constant, column_values[0], centre), np.where(is_constant, 0.0, spread)
        self.centre.copy_(torch.from_numpy(centre * units))
        with np.errstate(over="ignore"):
            spread = np.minimum(spread * units, np.finfo(np.float64).max)
        self.spread.copy_(torch.from_numpy(np.where(spread > 0, spread, 1.0)))

    @classmethod
    def fitted(cls, column_values: np.ndarray, kind: ScaleKind) -> "Scale":
        """A scale of a kind, fitted to values (N, K)."""
        scale = cls(column_values.shape[1], kind)
        scale.fit(column_values)
        return scale

    def scaled(self, column_values: np.ndarray) -> np.ndarray:
        """z (N, K) float32 of values (N, K)."""
        return self(torch.from_numpy(column_values).to(self.centre.device)).cpu().numpy()

    def forward(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """z (..., K) in `dtype` of x (..., K), computed in float64."""
        z = (x.double() - self.centre) / self.spread
        return (z.asinh() if self.kind == "asinh" else z).to(dtype)

    def inverse(self, z: Tensor) -> Tensor:
        """x (..., K) in float64, in the columns' own unit, of z (..., K)."""
        x = z.double()
        return (x.sinh() if self.kind == "asinh" else x) * self.spread + self.centre
