"""ICR transformers of one shape trained as one network, each with its own weights, loss, clipping and updates."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.icr.cuda_graph import GraphedNetwork
from zoo.icr.error_metrics import ErrorsByKind
from zoo.icr.evaluation import by_kind
from zoo.icr.model import Network
from zoo.icr.module import ICRTransformer
from zoo.icr.sweep.stacked_data import select, select_prompts
from zoo.icr.task import Diversity, as_prompts
from zoo.private_apis.lightning_logger import show_in_progress_bar


class StackedICR(ICRTransformer):
    """Several `ICRTransformer`s with the same initial weights, one member for each M.

    Batches come from `StackedTasks` with the same list of M. A member can be removed during training; batches keep
    the prompts of all, and `places` selects those that are still trained.

    Args:
        all_members: the pool sizes M of the batches, in their order.
        **settings: arguments of `ICRTransformer`.
    """

    def __init__(self, all_members: Sequence[Diversity], **settings: Any) -> None:
        self.members = list(all_members)  # those that are still trained
        self.places = list(range(len(all_members)))  # their positions in a batch
        self.n_stacked = len(all_members)  # members of a batch
        super().__init__(**settings)
        self.member_errors: dict[Diversity, ErrorsByKind] = {}  # at the last evaluation
        self.last_losses = torch.zeros(len(all_members), dtype=torch.float32)  # (S,)

    def build_network(self) -> Network:
        return Network(self.config, len(self.members))

    # ---- training

    def on_train_start(self) -> None:
        """The data has one task for each member, so the module's own is left as it is."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        # The losses of the members are summed, so that the gradient of each depends on its own loss only.
        prompts = as_prompts(batch, self.config)
        if len(self.places) < self.n_stacked:
            prompts = select_prompts(prompts, self.places)
        losses = self.losses(prompts)  # (S,)
        self.last_losses = losses.detach()
        if self.logs_this_step:
            show_in_progress_bar(self.trainer, "train_loss", self.last_losses.mean())
        return losses.sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The base class would log the gradient norm over all members, which says little about one."""

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each member's gradient by its own norm, as torch's clip_grad_norm_ does for one model."""
        if self.settings.grad_clip is None:
            return
        # Norm of each member's gradient, over its slices of all parameters.
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norms = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()  # (S,)
        scale = (self.settings.grad_clip / (norms + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))

    # ---- evaluation

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if not self.members:  # after the last member is removed Lightning validates once more
            return
        for kind, stacked in by_kind(batch, self.config).items():
            evaluation = stacked if len(self.places) == self.n_stacked else select(stacked, self.places)
            metric: Any = self.errors[f"val_{kind}"]
            metric.update(evaluation, self.predictions(evaluation.prompts))

    def log_errors(self, split: str) -> None:
        errors = self.compute_errors(split) if self.members else {}
        # `errors` has an entry for each member along its first axis.
        for place, M in enumerate(self.members):
            self.member_errors[M] = {k: {name: e[place] for name, e in of.items()} for k, of in errors.items()}
        if self.members:  # for the progress line: the mean over members
            self.log("val_loss", errors["pretrain"]["mse"].mean())

    # ---- members

    @torch.no_grad()
    def remove(self, removed: Sequence[Diversity]) -> None:
        """Continue without some members: drop their weights and the optimizer's state for them."""
        if not removed:
            return
        # Keep the members that go on, with their positions in the batch; without any, training ends.
        remaining = [place for place, M in enumerate(self.members) if M not in removed]
        self.members = [self.members[place] for place in remaining]
        self.places = [self.places[place] for place in remaining]
        if not remaining:
            self.trainer.should_stop = True
            return
        # Select their slices of weights and of the optimizer's state, in place of the old tensors.
        state = self.trainer.optimizers[0].state
        for parameter in self.model.parameters():
            parameter.data, parameter.grad = parameter.data[remaining], None
            state[parameter] = change_tensors(state[parameter], lambda tensor: tensor[remaining])
        self.last_losses, self.errors = self.last_losses[remaining], self.build_metrics().to(self.device)
        if self._graphed is not None:
            self._graphed = GraphedNetwork(self.model)  # a new recording, for the new tensors
        torch.compiler.reset()  # otherwise a few different sizes would make it give up compiling


def change_tensors(state: dict[Any, Any], change: Callable[[Tensor], Tensor]) -> dict[Any, Any]:
    """A copy of a parameter's optimizer state with `change` applied to its tensors."""
    return {name: change(value) if isinstance(value, Tensor) else value for name, value in state.items()}
