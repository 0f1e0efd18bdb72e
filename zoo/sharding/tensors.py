"""Tensors that are divided among processes (torch's DTensor), treated like ordinary tensors where both occur.

Importing it does not import torch.distributed.tensor and torch.distributed.fsdp, which takes as long as a third of
torch: without them no tensor is divided.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(network: nn.Module) -> bool:
    """Whether the parameters of a network are divided among processes, also while they are collected."""
    module = sys.modules.get("torch.distributed.fsdp")
    return module is not None and isinstance(network, module.FSDPModule)


def is_divided(tensor: Any) -> "TypeGuard[DTensor]":
    """Whether it is a tensor that is divided among processes."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds, in the same memory; any other tensor itself."""
    return tensor.to_local() if is_divided(tensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The complete tensor. All processes must call this for a sharded one, which is collected from them."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def shard_like(tensor: Tensor, target: "DTensor") -> "DTensor":
    """A complete tensor, equal in all processes, divided like `target` and on its device; nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    tensor = tensor.to(target.dtype)
    return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """() the norm of all gradients together. All processes must call this for sharded gradients."""
    return full(nn.utils.get_total_norm(list(gradients)))


def are_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Whether all elements of each tensor are finite. All processes must call this if one of them is sharded."""
    if not tensors:
        return []
    # The flags of all tensors are exchanged together, on the device of the sharded ones.
    sharded = [tensor for tensor in tensors if is_divided(tensor)]
    flags = [local(tensor).isfinite().all() for tensor in tensors]
    device = local(sharded[0]).device if sharded else flags[0].device
    together = torch.stack([flag.to(device) for flag in flags]).int()
    if sharded:
        torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MIN)
    return together.bool().tolist()
