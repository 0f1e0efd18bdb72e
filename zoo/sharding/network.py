"""Division of a network among processes with torch's `fully_shard` (FSDP2).

Zhao et al. 2023, https://arxiv.org/abs/2304.11277; Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054 (ZeRO).
Every process holds 1/N of each parameter, of its gradient and of its optimizer state. Blocks are collected just before
their forward and backward pass and freed after it; everything outside of blocks is collected for a training step.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from zoo.private_apis.fsdp_api import prepare_root
from zoo.sharding.tensors import is_sharded

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


def shard(
    network: nn.Module,
    blocks: Iterable[nn.Module],
    methods: Sequence[str],
    mesh: DeviceMesh,
    block_dtype: torch.dtype | None = None,
) -> None:
    """Divide the parameters of a network in place, and move it to the mesh's device.

    Args:
        network: the network.
        blocks: modules inside it that are collected one after the other; a block's parameters are used only inside its
            `forward`. Without blocks all parameters are collected together.
        methods: names of the methods of the network, in addition to `forward`, that a training step calls; none of
            them, nor `forward`, calls another one.
        mesh: the processes: (shards,) or (copies, shards).
        block_dtype: dtype to which the parameters of blocks are cast before they are collected; None: no cast.
            Gradients are summed in fp32.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    policy = MixedPrecisionPolicy(
        param_dtype=block_dtype, reduce_dtype=block_dtype and torch.float32, cast_forward_inputs=False
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=False)
    for name in methods:
        register_fsdp_forward_method(network, name)


def collect(network: Any) -> None:
    """Collect all parameters in every process until `release`, for code that uses them outside of `forward`."""
    prepare_root(network)
    for module in _parts(network):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()


def release(network: Any) -> None:
    """Free the parameters that `collect` has collected, except each process's share."""
    for module in _parts(network):
        module.set_reshard_after_forward(module is not network, recurse=False)
    # Also forgets the order of the blocks' calls, which may differ between processes and decides what backward fetches.
    network.reset_iter_state()


def _parts(network: nn.Module) -> "list[FSDPModule]":
    """The network and its blocks."""
    return [module for module in network.modules() if is_sharded(module)]  # type: ignore[misc]
