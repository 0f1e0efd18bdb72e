"""Linear map y = x W^T + b. In fp32 on a CPU it is computed by the faster of two libraries, oneDNN and MKL.

On AMD's CPUs oneDNN's fp32 matrix product is up to twice as fast as MKL's, on Intel's MKL's is up to 1.4 times as fast
as oneDNN's. The choice depends on the manufacturer alone and not on a measurement, so that every run on a machine
computes the same bits.
"""

import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.private_apis.torch_api import has_onednn_linear, onednn_linear, transforms_are_active

INTEL = "GenuineIntel"


def is_intel_cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU is Intel's, by Linux's description of the CPUs or, on other systems, by Python's."""
    try:
        return INTEL in cpuinfo.read_text()
    except OSError:
        return INTEL in platform.processor()


ONEDNN = has_onednn_linear() and not (is_intel_cpu() and torch.backends.mkl.is_available())


def is_eager_cpu_fp32(x: Tensor) -> bool:
    """Whether x is an ordinary tensor of fp32 on a CPU, and nothing is being compiled or traced."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not isinstance(x, Tensor):  # torch.fx traces proxies
        return False
    return x.device.type == "cpu" and x.dtype == torch.float32 and is_dense(x)


def is_dense(x: Tensor) -> bool:
    """Whether the elements of x are in memory as of an ordinary tensor: not sparse, nested or in oneDNN's layout."""
    return x.layout == torch.strided and not x.is_nested


def by_onednn(x: Tensor) -> bool:
    """Whether products with x are computed by oneDNN, which takes no vectors and no empty tensors."""
    return bool(ONEDNN) and is_eager_cpu_fp32(x) and x.ndim > 1 and x.numel() > 0


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x (..., n), weight (m, n), bias (m,) -> (..., m), for code that autograd does not record.

    Args:
        x: factor.
        weight: matrix.
        bias: added to each row; None: none.
        out: memory that may be used for the result (..., m), for x (N, n) without a bias; None: new memory.
    """
    if by_onednn(x):
        return onednn_linear(x, weight, bias)
    return F.linear(x, weight, bias) if out is None else torch.mm(x, weight.T, out=out)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As F.linear: x (..., n), weight (m, n), bias (m,) -> (..., m).

    F.linear computes what oneDNN's operator does not support: other dtypes, sparse and nested tensors, tracing.
    """
    if not by_onednn(x) or torch.is_autocast_enabled("cpu") or transforms_are_active() or not _fits(x, weight, bias):
        return F.linear(x, weight, bias)
    return _OneDNNLinear.apply(x, weight, bias)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the shapes and dtypes are the usual ones; F.linear takes further ones, and has errors for the rest."""
    is_matrix = weight.ndim == 2 and weight.shape[1] == x.shape[-1] and len(weight) > 0 and weight.dtype == x.dtype
    return (
        is_matrix and is_dense(weight) and (bias is None or (bias.shape == weight.shape[:1] and bias.dtype == x.dtype))
    )


class Linear(nn.Linear):
    """torch.nn.Linear that computes by `linear`. Arguments as in torch.nn.Linear."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _OneDNNLinear(torch.autograd.Function):
    """`onednn_linear` with gradients."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def jvp(ctx, x_tangent: Tensor | None, weight_tangent: Tensor | None, bias_tangent: Tensor | None) -> Tensor:
        # dy = dx W^T + x dW^T + db, of those that vary.
        x, weight = ctx.saved_tensors
        terms = [None if x_tangent is None else F.linear(x_tangent, weight)]
        terms += [None if weight_tangent is None else F.linear(x, weight_tangent)]
        terms += [None if bias_tangent is None else bias_tangent.expand(*x.shape[:-1], -1)]
        first, *others = (term for term in terms if term is not None)
        return sum(others, start=first)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        # For y = x W^T + b and the gradient g of y: dx = g W, dW = g^T x, db = sum of g, each where it is needed.
        x, weight = ctx.saved_tensors
        rows, x_rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])  # (N, m), (N, n)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        if torch.is_grad_enabled() or transforms_are_active():  # create_graph=True, is_grads_batched=True
            return (
                grad @ weight if needs_x else None,
                rows.T @ x_rows if needs_weight else None,
                rows.sum(0) if needs_bias else None,
            )
        return (
            product(grad, weight.T) if needs_x else None,  # (..., n)
            product(rows.T, x_rows.T) if needs_weight else None,  # (m, n)
            rows.sum(0) if needs_bias else None,  # (m,)
        )
