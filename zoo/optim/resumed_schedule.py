"""A learning-rate schedule whose settings, and those of its optimizer, are the current ones when a run is resumed."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


class ResumedSchedule(LambdaLR):
    """`LambdaLR` that restores its step from a checkpoint, and nothing else.

    Loading its state also gives the optimizer's groups the settings (learning rate, betas, weight decay and so on) that
    they had when the schedule was built. The optimizer's own state, such as running means, stays as loaded. Load the
    optimizer first, as Lightning does. With unchanged settings the result is bitwise that of `LambdaLR`.

    Args:
        optimizer: the optimizer, with the current settings.
        factor: step -> factor on each group's learning rate.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> None:
        self._group_settings = [
            {name: value for name, value in group.items() if name not in ("params", "lr", "initial_lr")}
            for group in optimizer.param_groups
        ]
        super().__init__(optimizer, factor)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        del state["_group_settings"]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = state_dict["_step_count"]
        factors = [factor(self.last_epoch) for factor in self.lr_lambdas]
        self._last_lr = [base * factor for base, factor in zip(self.base_lrs, factors, strict=True)]
        groups = self.optimizer.param_groups
        for group, settings, base, lr in zip(groups, self._group_settings, self.base_lrs, self._last_lr, strict=True):
            group.update(settings, initial_lr=base, lr=lr)
