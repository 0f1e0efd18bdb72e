"""Muon for the matrices inside layers, AdamW for all other parameters, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
semi-orthogonal matrix, which sets all its singular values to 1. The update is then scaled to the root mean square of
AdamW's (Liu et al. 2025, https://arxiv.org/abs/2502.16982). Embeddings, output layers and vectors are left to AdamW.

The algorithm itself is `torch.optim.Muon`; this module adds what torch leaves out, one optimizer object for both parts.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon

from zoo.optim.adamw import AdamW
from zoo.private_apis.torch_api import muon_update
from zoo.sharding.tensors import full, is_divided, local, shard_like


class ShardableMuon(Muon):
    """`torch.optim.Muon`, also for matrices that are divided among processes. Arguments are the same.

    The update of a matrix depends on all its elements: every process collects one momentum matrix after the other,
    computes the update from it and applies its own rows.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every matrix that has a gradient; returns the closure's loss, if there is one."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        matrices = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not any(is_divided(p) for _, p in matrices):
            super().step()
            return loss
        from torch.distributed.tensor import DTensor

        for group, p in matrices:
            # The momentum is elementwise, as is Nesterov's look-ahead.
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            gradient, momentum = local(p.grad), group["momentum"]
            mean = local(self.state[p]["momentum_buffer"]).lerp_(gradient, 1 - momentum)
            ahead = gradient.lerp(mean, momentum) if group["nesterov"] else mean
            direction = DTensor.from_local(ahead, p.device_mesh, p.placements, shape=p.shape, stride=p.stride())
            # The direction and its step size are computed from the full matrix.
            update, step_size = muon_update(full(direction), group)
            local(p).mul_(1 - group["lr"] * group["weight_decay"])
            local(p).add_(local(shard_like(update, direction)), alpha=-step_size)
        return loss


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `zoo.optim.AdamW` as one optimizer, for a trainer, a schedule and a checkpoint.

    Args:
        matrices: (out, in) weights for Muon.
        others: parameters, or groups of them, for AdamW.
        muon_lr: Muon's learning rate.
        muon_weight_decay: Muon's decoupled weight decay.
        momentum: Muon's momentum, in [0, 1).
        lr: AdamW's learning rate.
        **adamw: further arguments of `zoo.optim.AdamW`.
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
        # Muon scales its updates to the root mean square of AdamW's.
        muon = ShardableMuon(
            matrices,
            lr=muon_lr,
            weight_decay=muon_weight_decay,
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        self.parts: tuple[torch.optim.Optimizer, ...] = (muon, AdamW(others, lr=lr, **adamw))
        super().__init__([p for part in self.parts for group in part.param_groups for p in group["params"]], {})
        self._share_groups()

    def _share_groups(self) -> None:
        # The same dictionaries as those of the parts: a schedule that sets a learning rate here sets it there.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update by both parts; returns the closure's loss, if there is a closure."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()
