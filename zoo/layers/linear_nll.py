"""Mean cross-entropy of a linear layer's logits, computed without storing all logits.

    loss = mean over n of logsumexp(W h_n) - w_{t_n} . h_n

Logits (N, V) of a language model are its largest tensor. Here the logits of one chunk of positions at a time are
computed, reduced to the loss and, in place, turned into its gradient softmax(W h) - onehot(t), which is multiplied out
to the gradients of h and W. So the forward pass computes the gradients too, and holds one chunk (chunk, V) instead of
(N, V). The arithmetic is that of the plain form. Wijmans et al. 2024, https://arxiv.org/abs/2411.09009, also split V.
torch 2.13's F.linear_cross_entropy is similar, but cannot be compiled.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.layers.linear import product

IGNORE = -100  # a target that is not scored: the default ignore_index of torch's cross_entropy
CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**29}  # of fp32 logits: about a CPU's cache; enough to fill a GPU


def linear_nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log softmax(hidden @ weight^T)[target] over the targets that are not -100; 0 if there are none.

    The matrix products follow autocast; everything else is fp32.

    Args:
        hidden: hidden states (N, d).
        weight: matrix of the output layer (V, d).
        targets: class of each position (N,), int64; -100 is not scored.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return _LinearNLL.apply(hidden, weight, targets, dtype, torch.is_grad_enabled())


class _LinearNLL(torch.autograd.Function):
    """`linear_nll` with products in `dtype`; the gradients are computed in the forward pass if `grad`."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, grad: bool) -> Tensor:
        # Number of positions n per chunk, so that the chunk's fp32 logits have the given size.
        rows = max(1, CHUNK_BYTES.get(hidden.device.type, 2**27) // (4 * weight.shape[0]))
        # The loss is a mean over scored targets; a batch without any has loss 0.
        is_scored = targets != IGNORE
        scale = is_scored.sum().clamp(min=1).float().reciprocal()
        # Products are computed in `dtype`; the loss and the sum of the weight's gradient stay fp32.
        low_hidden, low_weight = hidden.to(dtype), weight.to(dtype)
        hidden_grad, weight_grad = [], torch.zeros_like(weight, dtype=torch.float32) if grad else None
        total = torch.zeros((), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for h, t, k in zip(low_hidden.split(rows), targets.split(rows), is_scored.split(rows), strict=True):
                # The loss: logsumexp, shifted by the largest logit, minus the target's logit.
                logits = product(h, low_weight).float()  # (chunk, V)
                index, k = t.clamp(min=0)[:, None], k[:, None]  # (chunk, 1)
                largest = logits.amax(-1, keepdim=True)  # (chunk, 1)
                target_logit = logits.gather(1, index) - largest
                mass = logits.sub_(largest).exp_()  # in place: one chunk of memory, one exponential
                norm = mass.sum(-1, keepdim=True)
                total += ((norm.log() - target_logit) * k).sum()
                # Its gradient by the logits, in the same memory, and from it those of h and W.
                if weight_grad is not None:
                    logit_grad = mass.mul_(k / norm).scatter_add_(1, index, -k.float()).to(dtype)
                    hidden_grad.append(product(logit_grad, low_weight.T).float())  # (chunk, d)
                    if dtype == torch.float32:
                        weight_grad.addmm_(logit_grad.T, h)  # (V, d)
                    else:
                        weight_grad += logit_grad.T @ h
            if weight_grad is not None:
                # Divide by the number of targets last and in fp32: before, in 16 bits, probabilities would underflow.
                ctx.save_for_backward(torch.cat(hidden_grad).mul_(scale), weight_grad.mul_(scale))
                ctx.dtypes = hidden.dtype, weight.dtype
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        # The gradients are known already: only the chain rule's factor is missing.
        hidden_grad, weight_grad = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        return (hidden_grad * grad).to(hidden_dtype), (weight_grad * grad).to(weight_dtype), None, None, None
