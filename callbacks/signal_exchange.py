"""Exchange of recorded signals between the ranks of a run, without waiting for a GPU."""

from collections.abc import Sequence

import torch
from lightning.pytorch import Trainer
from torch import Tensor


class SignalExchange:
    """For each of a few numbers the largest over all ranks; all ranks call this at the same points of the run.

    On CPUs the result belongs to the numbers given; on GPUs to the call before, 0 at the first call: its
    result has reached the host when the step after it ends, so the host does not wait for the present step.
    """

    def __init__(self) -> None:
        self._sent: tuple[Tensor, torch.cuda.Event] | None = None

    def largest(self, trainer: Trainer, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over all ranks."""
        device = torch.device(trainer.strategy.root_device)
        if device.type != "cuda":
            received = torch.tensor(numbers, device=device)
            return trainer.strategy.reduce(received, reduce_op="max").tolist()
        # Filled on the device, because a copy from the host would wait. Lightning's reduce has a barrier, which waits.
        values = torch.stack([torch.full((), number, device=device) for number in numbers])
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
        on_host = values.to("cpu", non_blocking=True)
        is_copied = torch.cuda.Event()
        is_copied.record()
        before, self._sent = self._sent, (on_host, is_copied)
        if before is None:
            return [0] * len(numbers)
        on_host, is_copied = before
        is_copied.synchronize()  # only for the step before
        return on_host.tolist()
