"""Weights of losses: an optimizer step has the gradient of one batch of all its micro-batches on all ranks.

Lightning averages the mean losses of the micro-batches of an accumulation window, and DDP the gradients of the ranks.
Where these average over different numbers of rows or tokens, the result is a mean of means. So the mean loss of a
micro-batch over n items is multiplied by

    n / N * accumulate_grad_batches * ranks

where N is the number of items in all micro-batches of the window on all ranks; the last two factors cancel Lightning's
division and DDP's. Each term of a loss has its own n and N. To know N before the first backward pass, the batches of a
window are fetched at its start: host memory holds accumulate_grad_batches batches. Where all n are equal, the product
is exactly 1. Counts remain on the device, so the host does not wait for it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from zoo.private_apis.lightning_api import batch_index
from zoo.private_apis.lightning_batches import attached_trainer, is_window_start, rest_of_window

Counts = Sequence[int | Tensor]  # for each term of a loss the number of items, an int or a tensor () int64


class Loss(NamedTuple):
    """One term of a training loss."""

    name: str  # under which it is logged
    mean: Tensor  # () mean over the items of one batch
    weight: float = 1.0  # its factor in the sum of all terms


class Window:
    """One accumulation window: for each of T terms the number of items and the summed loss.

    Args:
        first: number of its first batch, over all epochs.
        counts: the counts of its batches on this rank.
        device: where the counts are kept.
        ranks: number of processes that train together.
    """

    def __init__(self, first: int, counts: Sequence[Counts], device: torch.device, ranks: int = 1) -> None:
        self.next_batch, self.end, self.ranks = first, first + len(counts), ranks
        self.totals = self._all_ranks(torch.stack([_vector(count, device) for count in counts]).sum(0))  # (T,) int64
        self.sums: Tensor | float = 0.0  # (T,) each term's loss, summed over the items of the batches so far

    def add(self, losses: Sequence[Loss], counts: Counts, divisor: int) -> Tensor:
        """Add a batch.

        Args:
            losses: its T losses.
            counts: its numbers of items.
            divisor: what Lightning divides the loss by.

        Returns:
            (T,) factors of the losses, so that the gradient is that of the means over the window.
        """
        means = torch.stack([loss.mean.detach() for loss in losses])  # (T,)
        dtype = torch.promote_types(means.dtype, torch.float32)
        items = _vector(counts, means.device)
        self.sums = self.sums + means * items.to(dtype)
        self.next_batch += 1
        # Integers are multiplied before they are rounded to floats: equal shares give exactly 1.
        return (items * (divisor * self.ranks)).to(dtype) / self._nonzero_totals().to(dtype)

    def _nonzero_totals(self) -> Tensor:
        return self.totals.clamp(min=1)  # a window without a single item has loss 0

    @property
    def is_complete(self) -> bool:
        """Whether all batches have been added."""
        return self.next_batch == self.end

    def means(self) -> Tensor:
        """(T,) each term's mean over all items of the window and of all ranks."""
        assert isinstance(self.sums, Tensor)
        return self._all_ranks(self.sums) / self._nonzero_totals()

    def _all_ranks(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, in place."""
        if self.ranks > 1:
            torch.distributed.all_reduce(values)
        return values


def _vector(counts: Counts, device: torch.device) -> Tensor:
    # Adding to a tensor on the device, instead of copying to it, does not make the host wait.
    zero = torch.zeros((), dtype=torch.int64, device=device)
    return torch.stack([zero + count for count in counts])  # (T,)


class WeightedLosses(LightningModule):
    """LightningModule whose optimizer steps average over the items of all their micro-batches and ranks.

    A subclass implements `loss_counts`, and its `training_step` returns `self.step_loss(batch, ...)`.
    """

    _window: Window | None = None

    def loss_counts(self, batch: Any) -> Counts:
        """The number of items that each term of the training loss averages over.

        Called with accumulation or several ranks only.

        Args:
            batch: a training batch, as the loader yields it or as `training_step` receives it.

        Returns:
            One number for each `Loss` of `step_loss`, in the same order: an int or a tensor () int64.
        """
        raise NotImplementedError(f"{type(self).__name__} needs loss_counts for accumulation or several ranks")

    def log_losses(self, losses: dict[str, Tensor]) -> None:
        """Log the losses of an optimizer step: means over its micro-batches and all ranks.

        Lightning reads a value for the progress bar at every step, for which the host would wait for a GPU: there
        `train_loss` is added to the bar at the steps that are logged.
        """
        for name, loss in losses.items():
            self.log(name, loss, prog_bar=name == "train_loss" and loss.device.type == "cpu", batch_size=1)

    @torch.compiler.disable
    def step_loss(self, batch: Any, *losses: Loss) -> Tensor:
        """The loss that `training_step` returns: the sum of its terms, each weighted by its number of items.

        Logs each term once per optimizer step.
        """
        trainer = attached_trainer(self)
        is_training = trainer is not None and trainer.training
        if not is_training or trainer.accumulate_grad_batches * trainer.world_size == 1:
            # A step is one batch, and there is nothing to weight.
            self.log_losses({loss.name: loss.mean for loss in losses})
            return _sum(losses)
        counts, number = self.loss_counts(batch), batch_index(trainer)
        # Count the items of all batches of the window when it starts, or when a run is resumed inside it.
        if self._window is None or is_window_start(trainer) or self._window.next_batch != number:
            ahead = [self.loss_counts(following) for following in rest_of_window(trainer)]
            self._window = Window(number, [counts, *ahead], losses[0].mean.device, trainer.world_size)
        factors = self._window.add(losses, counts, trainer.accumulate_grad_batches)
        if self._window.is_complete:
            means = self._window.means()
            self.log_losses({loss.name: mean for loss, mean in zip(losses, means, strict=True)})
            self._window = None
        return _sum([loss._replace(mean=loss.mean * f) for loss, f in zip(losses, factors, strict=True)])


def _sum(losses: Sequence[Loss]) -> Tensor:
    first, *others = losses
    total = first.mean if first.weight == 1 else first.weight * first.mean
    for loss in others:
        total = total + loss.weight * loss.mean
    return total
