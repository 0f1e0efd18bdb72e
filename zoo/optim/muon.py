"""Muon for the matrices inside a network, AdamW for the rest: torch's Muon and our AdamW as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) moves a matrix along its momentum with all its
singular values made equal, here to the length of AdamW's steps (Liu et al. 2025, https://arxiv.org/abs/2502.16982).
Embeddings, heads and vectors have no such geometry: they are AdamW's.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon

from zoo.optim.adamw import AdamW


class MuonAdamW(torch.optim.Optimizer):
    """Two optimizers in one, so that a trainer, a schedule and a checkpoint see one.

    Args:
        matrices: (out, in) weights for Muon.
        others: parameters, or groups of them, for AdamW.
        muon_lr, muon_weight_decay, momentum: Muon's.
        lr, **adamw: AdamW's.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Any],
        muon_lr: float = 0.01,
        muon_weight_decay: float = 0.1,
        momentum: float = 0.95,
        lr: float = 1e-3,
        **adamw: Any,
    ) -> None:
        muon = Muon(
            matrices,
            lr=muon_lr,
            weight_decay=muon_weight_decay,
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        self.parts: tuple[torch.optim.Optimizer, ...] = (muon, AdamW(others, lr=lr, **adamw))
        super().__init__([p for part in self.parts for group in part.param_groups for p in group["params"]], {})
        self._share()

    def _share(self) -> None:
        # The very groups of the parts: a schedule that sets a rate here sets it there.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()
