"""Private APIs of torch's fully_shard and of Lightning's strategy for it. Written for torch 2.13 and lightning 2.6.

Private members used: `FSDPModule._get_fsdp_state` and its method `_lazy_init`; `_data_parallel_size`,
`_tensor_parallel_size` and `_setup_distributed` of Lightning's ModelParallelStrategy.
tests/private_apis/test_fsdp_api.py and tests/sharding/test_sharded_tensors.py fail when one of them changes.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy


def prepare_root(network: Any) -> None:
    """Make a network that was given to `fully_shard` the root of its blocks, before its first forward pass does.

    Without a root the parameters of a block cannot be collected.
    """
    network._get_fsdp_state()._lazy_init()


class OpenModelParallelStrategy(ModelParallelStrategy):
    """A ModelParallelStrategy whose device mesh has the axes (copies of the model, processes that share a copy).

    Args:
        shard_size: number of processes that share a copy; None: all.
        **options: arguments of ModelParallelStrategy.
    """

    def __init__(self, shard_size: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.shard_size = shard_size

    def setup_environment(self) -> None:
        processes = self.num_nodes * self.num_processes
        self.check_processes(processes)
        self._tensor_parallel_size = self.shard_size or processes
        self._data_parallel_size = processes // self._tensor_parallel_size
        super().setup_environment()

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        # Processes that disagree would wait for each other while they make the mesh.
        sizes: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(sizes, self.shard_size)
        self.check_sizes(sizes)

    def check_processes(self, processes: int) -> None:
        """Raise an error where the number of processes does not fit. Override this."""

    def check_sizes(self, sizes: Sequence[Any]) -> None:
        """Raise an error where the processes have different `shard_size`s. Override this.

        Args:
            sizes: that of each process.
        """
