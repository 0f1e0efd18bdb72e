"""Mean cross-entropy of a linear layer's logits, computed without storing all logits.

    loss = mean over n of logsumexp(W h_n) - w_{t_n} . h_n

Logits (N, V) of a language model are its largest tensor. Here the logits of one chunk of positions at a time are
computed, reduced to the loss and, in place, turned into its gradient softmax(W h) - onehot(t), which is multiplied out
to the gradients of h and W. So the forward pass computes the gradients too, and holds one chunk (chunk, V) instead of
(N, V). The arithmetic equals the plain form's. Wijmans et al. 2024, https://arxiv.org/abs/2411.09009, also split V.
The gradient of W is a sum over all positions. It is accumulated in fp32: with 131,072 positions of a small vocabulary
it exceeds fp16's largest number, 65504, and loses digits in bf16.
torch 2.13's F.linear_cross_entropy is similar, but cannot be compiled.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.errors import UserError
from zoo.layers.linear import by_onednn, is_eager_cpu_fp32, product
from zoo.layers.widen import widen
from zoo.private_apis.torch_api import keeps_graph

IGNORED = -100  # a target that is not scored: the default ignore_index of torch's cross_entropy
CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**29}  # of fp32 logits: about a CPU's cache; enough to fill a GPU
BLOCK_BYTES = 2**20  # of fp32 logits that are reduced together on a CPU: half of a core's second-level cache
GPU_MULTIPLE = 64  # of the number of logits on a GPU: its fast matrix products need rows of 16 bytes and more


def linear_nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(hidden @ weight^T)[target] over the targets that are not -100; 0 if there are none.

    The matrix products follow autocast; everything else is fp32, or fp64 if `hidden` is fp64.

    Args:
        hidden: hidden states (N, d).
        weight: matrix of the output layer (V, d).
        targets: class of each position (N,), int64; -100 is not scored.

    Raises:
        UserError: a target is no class, on a CPU. On a GPU and in torch.compile an index error of torch follows.
    """
    device = hidden.device.type
    if device == "cpu" and not torch.compiler.is_compiling():
        is_wrong = (targets != IGNORED) & ((targets < 0) | (targets >= weight.shape[0]))
        if is_wrong.any():
            raise UserError(
                f"targets hold {targets[is_wrong][0]}: each must be a class from 0 to {weight.shape[0] - 1}, or "
                f"{IGNORED} where it is not scored"
            )
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return _LinearNLL.apply(hidden, weight, targets, dtype, torch.is_grad_enabled())


class _LinearNLL(torch.autograd.Function):
    """`linear_nll` with products in `dtype`; the gradients are computed in the forward pass if `grad`."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, grad: bool) -> Tensor:
        # Number of positions n per chunk, so that the chunk's fp32 logits have the given size.
        on_gpu, n_classes = hidden.device.type == "cuda", weight.shape[0]
        rows = max(1, CHUNK_BYTES.get(hidden.device.type, 2**27) // (4 * n_classes))
        if on_gpu:  # chunks of one size, so that all are computed by the same compiled kernels
            n_chunks = max(1, -(-len(hidden) // rows))
            rows = max(1, -(-len(hidden) // n_chunks))
        # The loss is a mean over scored targets; a batch without any has loss 0.
        is_scored = targets != IGNORED
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        scale = is_scored.sum().clamp(min=1).to(wide).reciprocal()
        # Products are computed in `dtype`; the loss and the sum of the weight's gradient stay fp32 or fp64.
        low_hidden, low_weight = hidden.to(dtype), weight.to(dtype)
        n_padding = -n_classes % GPU_MULTIPLE if on_gpu else 0
        if n_padding:
            low_weight = F.pad(low_weight, (0, 0, 0, n_padding))
        # On a CPU all chunks share one memory for their logits: new memory costs a twentieth of the product.
        memory = None
        if is_eager_cpu_fp32(low_hidden) and not by_onednn(low_hidden):
            memory = low_hidden.new_empty(min(rows, len(hidden)), n_classes)
        hidden_grad, weight_grad = [], torch.zeros_like(low_weight, dtype=wide) if grad else None
        total = torch.zeros((), dtype=wide, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for h, t, k in zip(low_hidden.split(rows), targets.split(rows), is_scored.split(rows), strict=True):
                logits = widen(product(h, low_weight, out=None if memory is None else memory[: len(h)]))  # (chunk, V)
                if n_padding:
                    logits[:, n_classes:] = -torch.inf
                # A target that is no class gets an index beyond the logits, which torch refuses on every device.
                is_class = (t >= 0) & (t < n_classes)
                index = torch.where(k, torch.where(is_class, t, logits.shape[1]), 0)[:, None]  # (chunk, 1)
                k = k[:, None]
                if logits.device.type == "cpu" and not torch.compiler.is_compiling():
                    # A few rows at a time, which stay in the CPU's cache, and become their gradient in place.
                    n = max(1, BLOCK_BYTES // (4 * n_classes))
                    blocks = zip(logits.split(n), index.split(n), k.split(n), strict=True)
                    losses, logit_grad = torch.cat([_losses(*block, grad)[0] for block in blocks]), logits
                else:
                    losses, logit_grad = _losses(logits, index, k, grad)
                total += losses.sum()
                # From the gradient by the logits those of h and W.
                if weight_grad is not None:
                    logit_grad = logit_grad.to(dtype)
                    hidden_grad.append(widen(product(logit_grad, low_weight.T)))  # (chunk, d)
                    _add_product(weight_grad, logit_grad.T, h)  # (V, d)
            if weight_grad is not None:
                # Divide by the number of targets in fp32: in 16 bits, small probabilities would become 0.
                weight_grad = (weight_grad[:n_classes] if n_padding else weight_grad).mul_(scale)
                ctx.save_for_backward(torch.cat(hidden_grad).mul_(scale), weight_grad)
                ctx.dtypes = hidden.dtype, weight.dtype
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        # The gradients are known already: only the chain rule's factor is missing. It is 1 where the loss itself is
        # differentiated, which a CPU sees without waiting.
        hidden_grad, weight_grad = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        if grad.device.type != "cpu" or torch.compiler.is_compiling() or grad != 1:
            hidden_grad, weight_grad = hidden_grad * grad, weight_grad * grad
        elif keeps_graph():  # another backward pass can follow, and must not see what happens to these gradients
            hidden_grad, weight_grad = hidden_grad.clone(), weight_grad.clone()
        return hidden_grad.to(hidden_dtype), weight_grad.to(weight_dtype), None, None, None


def _losses(logits: Tensor, index: Tensor, is_scored: Tensor, grad: bool) -> tuple[Tensor, Tensor]:
    """Loss of each position (n, 1) and, if `grad`, its gradient by the logits (n, V).

    Args:
        logits: (n, V); their memory is used, and holds the gradient afterwards unless the code is being compiled.
        index: target of each position (n, 1).
        is_scored: False where the loss and its gradient are 0, (n, 1).
        grad: whether to compute the gradient.
    """
    # The loss: logsumexp, shifted by the largest logit, minus the target's logit.
    largest = logits.amax(-1, keepdim=True)  # (n, 1)
    target_logit = logits.gather(1, index) - largest
    mass = logits.sub_(largest).exp_()  # in place: one chunk of memory, one exponential
    norm = mass.sum(-1, keepdim=True)
    losses = (norm.log() - target_logit) * is_scored
    if not grad:
        return losses, mass
    # Its gradient: softmax(logits) - onehot(target).
    if torch.compiler.is_compiling():  # without a scatter it is one kernel with the lines above
        is_target = torch.arange(mass.shape[1], device=mass.device) == index
        return losses, mass * (is_scored / norm) - torch.where(is_target, is_scored.to(mass.dtype), 0)
    return losses, mass.mul_(is_scored / norm).scatter_add_(1, index, -is_scored.to(mass.dtype))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b in place, with sums in the dtype of total, fp32 or fp64: a (V, n), b (n, d), total (V, d)."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.device.type == "cuda" and torch.version.cuda:  # not on ROCm
        total += torch.mm(a, b, out_dtype=total.dtype)  # 16-bit factors, an fp32 result
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
