"""x W^T + b, by oneDNN where that is faster: in fp32 on a CPU.

F.linear reaches oneDNN in 16 bits only. On AMD's CPUs oneDNN's fp32 product is up to twice as fast as MKL's, and as
exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def by_onednn(x: Tensor) -> bool:
    """Whether it is oneDNN that multiplies x here."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return ONEDNN is not None and on_cpu and not torch.compiler.is_compiling()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., n), weight (m, n), bias (m,) -> (..., m): for where autograd does not look."""
    return ONEDNN(x, weight, bias, "none", [], "") if by_onednn(x) else F.linear(x, weight, bias)  # type: ignore[misc]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear: x (..., n), weight (m, n), bias (m,) -> (..., m). By oneDNN there is no second derivative."""
    if by_onednn(x) and not torch.is_autocast_enabled("cpu"):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            product(grad, weight.T) if of_x else None,
            product(rows.T, x.flatten(0, -2).T) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )
