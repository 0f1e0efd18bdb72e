"""Linear map y = x W^T + b, computed by oneDNN where that is faster: in fp32 on a CPU.

On AMD's CPUs oneDNN's fp32 matrix product is up to twice as fast as MKL's, and as exact.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.private_apis.torch_api import has_onednn_linear, onednn_linear

ONEDNN = has_onednn_linear()


def by_onednn(x: Tensor) -> bool:
    """Whether products with x are computed by oneDNN: x is fp32 on a CPU and nothing is being compiled."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return bool(ONEDNN) and on_cpu and not torch.compiler.is_compiling()


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., n), weight (m, n), bias (m,) -> (..., m), for code that autograd does not record."""
    return onednn_linear(x, weight, bias) if by_onednn(x) else F.linear(x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As F.linear: x (..., n), weight (m, n), bias (m,) -> (..., m). The oneDNN path has first derivatives only."""
    if by_onednn(x) and not torch.is_autocast_enabled("cpu"):
        return _OneDNNLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """torch.nn.Linear that computes by `linear`. Arguments as in torch.nn.Linear."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _OneDNNLinear(torch.autograd.Function):
    """`onednn_linear` with gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        # For y = x W^T + b and the gradient g of y: dx = g W, dW = g^T x, db = sum of g, each where it is needed.
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)  # (N, m)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(grad, weight.T) if needs_x else None,  # (..., n)
            product(rows.T, x.flatten(0, -2).T) if needs_weight else None,  # (m, n)
            rows.sum(0) if needs_bias else None,  # (m,)
        )
