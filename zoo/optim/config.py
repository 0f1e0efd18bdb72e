"""Optimizer and learning-rate settings, defined once for all models."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from zoo.errors import UserError
from zoo.optim.adamw import AdamW
from zoo.optim.muon import MuonAdamW
from zoo.optim.schedule import warmup_cosine

OptimizerName = Literal["adamw", "adafactor", "muon"]


@dataclass
class OptimizerConfig:
    """Settings of the optimizer and of its schedule: linear warm-up, then cosine decay, updated every step.

    A module's settings inherit from this class and may change a default. Weight decay acts on matrices only.

    Args:
        optimizer: "adamw"; "adafactor", torch's Adafactor; or "muon", Muon for the matrices inside layers and AdamW for
            all other parameters.
        lr: peak learning rate.
        muon_lr: peak learning rate of the matrices that Muon updates; used with optimizer=muon only.
        warmup_steps: optimizer steps of linear warm-up; 0 starts at the peak.
        min_lr_ratio: the cosine ends at this share of the peak learning rate, from 0 to 1.
        beta1: AdamW's decay rate of the first moment, in [0, 1).
        beta2: AdamW's decay rate of the second moment, in [0, 1).
        weight_decay: decoupled weight decay of matrices; 0 turns it off.
    """

    optimizer: OptimizerName = "adamw"
    lr: float = 1e-3
    muon_lr: float = 0.01
    warmup_steps: int = 100
    min_lr_ratio: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1

    def check(self) -> None:
        """Raises UserError for a setting outside its range."""
        if self.optimizer not in get_args(OptimizerName):
            raise UserError(f"optimizer must be one of {', '.join(get_args(OptimizerName))}, not {self.optimizer!r}")

    def build(
        self, parameters: Iterable[tuple[str, nn.Parameter]], lr_scale: Callable[[str], float] = lambda name: 1.0
    ) -> torch.optim.Optimizer:
        """The optimizer of the named parameters that require gradients.

        Args:
            parameters: (name, parameter) pairs, as from `named_parameters()`. With Muon, a matrix whose name contains
                ".layers." is Muon's.
            lr_scale: factor on the learning rate of a parameter, by its name.

        Raises:
            UserError: a setting is outside its range.
        """
        self.check()
        trained = {name: p for name, p in parameters if p.requires_grad}
        is_hidden = {name: self.optimizer == "muon" and ".layers." in name and p.ndim == 2 for name, p in trained.items()}
        hidden = [p for name, p in trained.items() if is_hidden[name]]
        scales = {name: lr_scale(name) for name in trained}
        # One group per learning rate, and within it one with weight decay (matrices) and one without (vectors).
        groups: list[dict[str, Any]] = []
        for scale in sorted(set(scales.values()), reverse=True):
            for is_matrix in (True, False):
                chosen = [
                    p
                    for name, p in trained.items()
                    if not is_hidden[name] and scales[name] == scale and (p.ndim >= 2) == is_matrix
                ]
                decay = self.weight_decay if is_matrix else 0.0
                groups.append({"params": chosen, "lr": self.lr * scale, "weight_decay": decay})
        if self.optimizer == "adafactor":
            return torch.optim.Adafactor(groups, lr=self.lr)
        betas = (self.beta1, self.beta2)
        if self.optimizer == "muon":
            return MuonAdamW(hidden, groups, muon_lr=self.muon_lr, lr=self.lr, betas=betas)
        return AdamW(groups, lr=self.lr, betas=betas)

    def schedule(self, optimizer: torch.optim.Optimizer, total_steps: int) -> LambdaLR:
        """Warm-up and cosine decay over `total_steps` optimizer steps."""
        return LambdaLR(
            optimizer, lambda step: warmup_cosine(step, self.warmup_steps, total_steps, self.min_lr_ratio)
        )
