"""Metrics over a whole split, exact for ragged batches and several ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from zoo.layers.widen import widen


class SummedLoss(Metric):
    """Mean loss per token and per word of a split, from sums over batches and ranks. A NaN in one batch stays NaN.

    The sum is in fp32, or in fp64 for fp64 losses.
    """

    loss: Tensor
    tokens: Tensor
    words: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("loss", "words"):
            self.add_state(name, torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")
        # An integer, because fp32 does not count beyond 2^24.
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, mean_loss: Tensor, tokens: Tensor, words: Tensor | None = None) -> None:
        """Add a batch: its mean loss () over `tokens` () tokens, and the number of words in each row (B,)."""
        # Not in place: the state may have been created in inference mode.
        self.loss = self.loss + widen(mean_loss.detach()) * tokens
        self.tokens = self.tokens + tokens
        if words is not None:
            self.words = self.words + words.sum()

    def compute(self) -> dict[str, Tensor]:
        """ "loss" per token and, where words were counted, "loss_per_word"."""
        result = {"loss": self.loss / self.tokens}
        if self.words > 0:
            result["loss_per_word"] = self.loss / self.words
        return result


def reset_metrics(*metrics: Metric | MetricCollection) -> None:
    """Reset metrics so that they can be updated anywhere.

    A state that is created in inference mode, in which Lightning validates, could not be changed in place by the
    validations of a later fit.
    """
    with torch.inference_mode(False):
        for metric in metrics:
            metric.reset()
