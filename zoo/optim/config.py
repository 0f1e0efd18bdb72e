"""Optimizer and learning-rate settings, defined once for all models."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from zoo.errors import UserError, check_choice, check_number, check_probability, check_weight
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
        lr: peak learning rate, at least 0.
        muon_lr: peak learning rate of the matrices that Muon updates, at least 0; used with optimizer=muon only.
        warmup_steps: optimizer steps of linear warm-up, at least 0; 0 starts at the peak.
        min_lr_ratio: the cosine ends at this share of the peak learning rate, from 0 to 1.
        beta1: AdamW's decay rate of the first moment, in [0, 1).
        beta2: AdamW's decay rate of the second moment, in [0, 1).
        weight_decay: decoupled weight decay of matrices, at least 0; 0 turns it off. The matrices that Muon updates
            have a weight decay of 0.1 instead.
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
        """Check all settings.

        Raises:
            UserError: a setting is outside its range; the message names both.
        """
        check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        for name in ("lr", "muon_lr", "weight_decay"):
            check_weight(name, getattr(self, name))
        for name in ("beta1", "beta2"):
            check_probability(name, getattr(self, name))
        check_number("min_lr_ratio", self.min_lr_ratio, "in [0, 1]", lambda ratio: 0 <= ratio <= 1)
        check_number("warmup_steps", self.warmup_steps, "at least 0", lambda steps: steps >= 0)

    def build(
        self, parameters: Iterable[tuple[str, nn.Parameter]], lr_scale: Callable[[str], float] = lambda name: 1.0
    ) -> torch.optim.Optimizer:
        """The optimizer of the named parameters that require gradients.

        Args:
            parameters: (name, parameter) pairs, as from `named_parameters()`. With Muon, a matrix whose name contains
                ".layers." is updated by Muon.
            lr_scale: factor on AdamW's and Adafactor's learning rate of a parameter, by its name.

        Raises:
            UserError: a setting is outside its range, or optimizer=muon is given a model without layers.
        """
        self.check()
        # Split the parameters: with Muon, the matrices inside layers are Muon's, and all others AdamW's.
        trained = {name: p for name, p in parameters if p.requires_grad}
        muon_names = {name for name, p in trained.items() if ".layers." in name and p.ndim == 2}
        if self.optimizer != "muon":
            muon_names = set()
        elif not muon_names:
            raise UserError("optimizer=muon needs a model with matrices inside layers: choose adamw or adafactor")
        # One group per learning rate, and within it one with weight decay (matrices) and one without (vectors).
        scales = {name: lr_scale(name) for name in trained if name not in muon_names}
        groups: list[dict[str, Any]] = []
        for scale in sorted(set(scales.values()), reverse=True):
            for is_matrix in (True, False):
                names = [name for name in scales if scales[name] == scale and (trained[name].ndim >= 2) == is_matrix]
                decay = self.weight_decay if is_matrix else 0.0
                group = {"params": [trained[name] for name in names], "lr": self.lr * scale, "weight_decay": decay}
                groups.append(group)
        # Build the optimizer that was chosen from these groups.
        if self.optimizer == "adafactor":
            return torch.optim.Adafactor(groups, lr=self.lr)
        betas = (self.beta1, self.beta2)
        if self.optimizer == "muon":
            matrices = [p for name, p in trained.items() if name in muon_names]
            return MuonAdamW(matrices, groups, muon_lr=self.muon_lr, lr=self.lr, betas=betas)
        return AdamW(groups, lr=self.lr, betas=betas)

    def lr_factor(self, step: int, total_steps: int) -> float:
        """The learning rate at a step, divided by its peak."""
        return warmup_cosine(step, self.warmup_steps, total_steps, self.min_lr_ratio)
