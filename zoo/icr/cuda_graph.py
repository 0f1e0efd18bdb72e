"""Predictions and their gradients as two CUDA graphs, which a GPU runs without waiting for the host's launches."""

from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 3  # runs before the recording, in which kernels are compiled and chosen


class GraphedNetwork:
    """A network f(x, y) for training on batches of one shape; its gradients are accumulated as usual.

    The first call records the graphs (torch.cuda.make_graphed_callables). Batches of another shape are computed
    without a graph. Only for steps without gradient accumulation: each backward pass writes its gradients into the same
    memory.

    Args:
        network: compiled or not; its parameters keep their place in memory.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._shapes: tuple[torch.Size, torch.Size] | None = None
        self._graphed: Any = None

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if self._graphed is None:
            # A separate module, because recording replaces the method `forward` of the module.
            call, examples = _Call(self.network), (x.clone(), y.clone())
            self._graphed = torch.cuda.make_graphed_callables(call, examples, num_warmup_iters=WARM_UP)
            call.release_graph()
            self._shapes = x.shape, y.shape
        return self._graphed(x, y) if (x.shape, y.shape) == self._shapes else self.network(x, y)


class _Call(nn.Module):
    """Calls a network through its compiled version, if it has one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._output: Tensor | None = None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self._output = self.network(x, y).clone()  # no view, which could not be detached in place
        return self._output

    def release_graph(self) -> None:
        """Release autograd's graph of the last call, whose output the recorded graphs keep.

        It would keep the parameters' gradient accumulators alive, which belong to the stream of the recording: every
        backward pass would then make the two streams wait for each other, once per parameter, and torch would warn.
        """
        if self._output is not None:
            self._output.detach_()
            self._output = None
