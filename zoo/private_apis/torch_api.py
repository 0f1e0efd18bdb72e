"""Private APIs of torch: the fused AdamW kernel, Muon's update of one matrix, oneDNN's matrix product, the hook under
`Module.to`, version counters of tensors, whether a transform of torch.func is active, and whether a backward pass keeps
its graph.

All are written for torch 2.13. tests/private_apis/test_torch_api.py fails when one of them changes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz


def has_fused_adamw() -> bool:
    """Whether this torch has the kernel that `fused_adamw` calls. Without it AdamW takes its plain path."""
    return hasattr(torch, "_fused_adamw_")


def fused_adamw(
    parameters: list[Tensor],
    gradients: list[Tensor],
    first_moments: list[Tensor],
    second_moments: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One AdamW update of all parameters, in place, in one pass over memory.

    Calls `torch._fused_adamw_` (torch 2.0 and later), the kernel behind `torch.optim.AdamW(fused=True)`. It exists for
    floating-point tensors on a CPU or a CUDA GPU. The public class has its own bias correction; `zoo.optim.AdamW` has
    another one, which it passes in `lr` and `eps`.

    Args:
        parameters: tensors of one dtype on one device, changed in place.
        gradients: their gradients.
        first_moments: running means of the gradients, changed in place.
        second_moments: running means of the squared gradients, changed in place.
        steps: for each parameter a tensor () with the number of this update, from 1.
        lr: learning rate.
        beta1: decay rate of the first moments.
        beta2: decay rate of the second moments.
        eps: added to the root of the bias-corrected second moment.
        weight_decay: decoupled weight decay; each parameter is first multiplied by 1 - lr * weight_decay.
    """
    torch._fused_adamw_(
        parameters, gradients, first_moments, second_moments, [], steps, lr=lr, beta1=beta1, beta2=beta2, eps=eps,
        weight_decay=weight_decay, amsgrad=False, maximize=False,
    )  # fmt: skip


def muon_update(direction: Tensor, group: Mapping[str, Any]) -> tuple[Tensor, float]:
    """The direction (m, n) of a step made semi-orthogonal, in bf16 (m, n), and the size of the step.

    Calls the functions under `torch.optim.Muon` (torch 2.9 and later), which takes complete matrices only.

    Args:
        direction: momentum of a matrix.
        group: the parameter group of `torch.optim.Muon` that the matrix belongs to.
    """
    update = _zeropower_via_newtonschulz(direction, group["ns_coefficients"], group["ns_steps"], group["eps"])
    return update, _adjust_lr(group["lr"], group["adjust_lr_fn"], direction.shape)


def has_onednn_linear() -> bool:
    """Whether `onednn_linear` works here: torch is built with oneDNN and has the operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b in fp32 on a CPU by oneDNN: x (..., n), weight (m, n), bias (m,) -> (..., m). Without gradients.

    Calls `torch.ops.mkldnn._linear_pointwise` (torch 2.0 and later), which the compiler's CPU backend also uses.
    `F.linear` reaches oneDNN in 16 bits only. Where the operator is missing, `zoo.layers.linear` uses `F.linear`.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class FixedBuffers(nn.Module):
    """A module whose own buffers keep their values under `.half()` and `.double()`, and follow `.to(device)`.

    Overrides `Module._apply`, the method that `.to()`, `.half()`, `.cuda()` etc. call with a function of a tensor. If
    torch stops calling it, the buffers are cast like all others, and tables of angles lose digits in half precision.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Let torch cast and move everything, then restore the values of buffers that were cast.
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self.get_buffer(name)
            if after.dtype != buffer.dtype:
                setattr(self, name, buffer.to(after.device))
        return self


def version(tensor: Tensor) -> int:
    """Number of in-place changes of a tensor's storage so far, which autograd compares before it uses a saved tensor.

    Reads `Tensor._version`. 0 for a tensor made in `torch.inference_mode`, which lacks the counter.
    """
    return 0 if tensor.is_inference() else tensor._version


def transforms_are_active() -> bool:
    """Whether the caller runs inside torch.func.grad, vmap, jvp or another transform of torch.func.

    Calls `torch._C._are_functorch_transforms_active` (torch 2.0 and later).
    """
    return torch._C._are_functorch_transforms_active()


def keeps_graph() -> bool:
    """Whether the backward pass that is running was called with retain_graph=True. For `torch.autograd.Function`s.

    Calls `torch._C._autograd._get_current_graph_task_keep_graph` (torch 2.1 and later). True outside a backward pass.
    """
    return torch._C._autograd._get_current_graph_task_keep_graph()
