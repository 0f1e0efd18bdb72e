"""All settings of an ICR transformer and its training: Adam with a constant or a triangular learning rate."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from zoo.errors import check_number
from zoo.icr.model import ICRegConfig
from zoo.optim import AdamW, OptimizerConfig, ResumedSchedule, triangle


@dataclass
class ICRSettings(OptimizerConfig, ICRegConfig):
    """The fields of `ICRegConfig`, and the optimizer: Adam with eps 1e-8 and weight decay on all parameters.

    Args:
        warmup_steps: optimizer steps, at least 0, over which the learning rate rises linearly to its peak; after them
            it falls linearly and ends at the last step of the run. None: the rate is constant.
        min_lr_ratio: the falling rate ends at this share of the peak, from 0 to 1; unused with a constant rate.
        beta1: Adam's decay rate of the first moment, in [0, 1).
        beta2: Adam's decay rate of the second moment, in [0, 1).
        weight_decay: decoupled weight decay of all parameters, at least 0; 0 turns it off.
        grad_clip: largest norm of the gradient of all parameters, positive; longer gradients are scaled down to it.
            None: gradients are not clipped.
    """

    warmup_steps: int | None = None  # type: ignore[assignment]
    min_lr_ratio: float = 0.0
    beta2: float = 0.999
    weight_decay: float = 0.0
    grad_clip: float | None = 1.0

    def check(self) -> None:
        """As in `OptimizerConfig`, but warmup_steps and grad_clip may be None."""
        OptimizerConfig.check(self if self.warmup_steps is not None else replace(self, warmup_steps=0))
        if self.grad_clip is not None:
            check_number("grad_clip", self.grad_clip, "positive, or null for no clipping", lambda norm: norm > 0)

    def build(
        self, parameters: Iterable[tuple[str, nn.Parameter]], lr_scale: Callable[[str], float] = lambda name: 1.0
    ) -> torch.optim.Optimizer:
        """The optimizer of the named parameters; "adafactor" and "muon" are built by `OptimizerConfig`."""
        if self.optimizer != "adamw":
            return super().build(parameters, lr_scale)
        trained: list[Any] = [p for _, p in parameters if p.requires_grad]
        betas = (self.beta1, self.beta2)
        return AdamW(trained, lr=self.lr, betas=betas, eps=1e-8, weight_decay=self.weight_decay)

    def schedule(self, optimizer: torch.optim.Optimizer, total_steps: int) -> ResumedSchedule:
        """A constant rate or, with `warmup_steps`, a triangle over `total_steps` optimizer steps."""
        warmup, floor = self.warmup_steps, self.min_lr_ratio
        if warmup is None:
            return ResumedSchedule(optimizer, lambda step: 1.0)

        def multiplier(step: int) -> float:
            height = triangle(step, warmup, total_steps)
            return height if step < warmup else floor + (1 - floor) * height

        return ResumedSchedule(optimizer, multiplier)
