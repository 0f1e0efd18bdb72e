"""Diagnostics of a fixed-point iteration: number of steps and evaluations, residual, reconstruction error."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Diagnostics:
    """Measurements that an iteration and its backward pass fill in.

    Attributes:
        steps: number of steps: () for all samples, or (B,) one per sample.
        iterations: the largest number of steps of a sample, which the host knows without waiting for the device.
        evaluations: number of evaluations of f.
        residual: relative residual of each sample (B,); None if the iteration did not compute it.
        reconstruction_error: () distance between z0 and the end of the backward pass, relative to the norm of z; NaN
            until the reversible backward pass has run.
        failure: () this error where it is larger than allowed; 0 otherwise, and until that pass has run.
    """

    steps: Tensor = field(default_factory=lambda: torch.tensor(0))
    iterations: int = 0
    evaluations: int = 0
    residual: Tensor | None = None
    reconstruction_error: Tensor = field(default_factory=lambda: torch.tensor(torch.nan, dtype=torch.float32))
    failure: Tensor = field(default_factory=lambda: torch.tensor(0.0, dtype=torch.float32))

    @classmethod
    def on(cls, device: torch.device) -> "Diagnostics":
        """New diagnostics with the errors on `device`, where the backward pass writes them without waiting for it."""
        nan = torch.full((), torch.nan, dtype=torch.float32, device=device)
        return cls(reconstruction_error=nan, failure=torch.zeros_like(nan))


def relative_residual(z: Tensor, fz: Tensor) -> Tensor:
    """|z - f(z)| / (1e-5 + |f(z)|) of each sample of z (B, ...): (B,)."""
    distance, size = (per_sample_norm(t) for t in (z - fz, fz))
    return distance / (1e-5 + size)


def per_sample_norm(t: Tensor) -> Tensor:
    """Euclidean norm of each sample of t (B, ...): (B,)."""
    return t[:, None].flatten(1).norm(dim=1)
