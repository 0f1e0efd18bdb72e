"""Mean cross-entropy of a linear layer's logits, without ever holding all the logits.

loss = mean over n of logsumexp(W h_n) - w_{t_n} . h_n. The logits of a chunk of positions are made, turned into
the loss and, in place, into its gradient softmax(W h) - onehot(t), multiplied out to the gradients of h and W,
and dropped: so the forward pass does the backward's work, with one chunk (chunk, V) in memory, not (N, V).
Same arithmetic as the plain form (Wijmans et al. 2024, https://arxiv.org/abs/2411.09009, go further, to blocks
of V). torch 2.13's F.linear_cross_entropy does likewise, but cannot be compiled.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.layers.linear import product

IGNORE = -100  # a target that does not count, torch's default
CHUNK_BYTES = {"cpu": 2**25, "cuda": 2**29}  # of fp32 logits: about a CPU's cache; enough to fill a GPU


def linear_nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The mean over targets (N,) that are not -100 of -log softmax(hidden (N, d) @ weight (V, d)^T)[target].

    A scalar, 0 where no target counts. The matrix products follow autocast, the rest is fp32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    return _LinearNLL.apply(hidden, weight, targets, dtype, torch.is_grad_enabled())


class _LinearNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, grad: bool) -> Tensor:
        rows = max(1, CHUNK_BYTES.get(hidden.device.type, 2**27) // (4 * weight.shape[0]))
        keep = targets != IGNORE
        scale = keep.sum().clamp(min=1).float().reciprocal()
        low_hidden, low_weight = hidden.to(dtype), weight.to(dtype)
        hidden_grad, weight_grad = [], torch.zeros_like(weight, dtype=torch.float32) if grad else None
        total = torch.zeros((), device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for h, t, k in zip(low_hidden.split(rows), targets.split(rows), keep.split(rows), strict=True):
                logits = product(h, low_weight).float()  # (chunk, V)
                index, k = t.clamp(min=0)[:, None], k[:, None]
                top = logits.amax(-1, keepdim=True)  # (chunk, 1)
                wanted = logits.gather(1, index) - top
                mass = logits.sub_(top).exp_()  # in place: one chunk of memory, one exponential
                norm = mass.sum(-1, keepdim=True)
                total += ((norm.log() - wanted) * k).sum()
                if weight_grad is not None:
                    probs = mass.mul_(k / norm).scatter_add_(1, index, -k.float()).to(dtype)
                    hidden_grad.append(product(probs, low_weight.T).float())
                    if dtype == torch.float32:
                        weight_grad.addmm_(probs.T, h)
                    else:
                        weight_grad += probs.T @ h
            if weight_grad is not None:
                # The mean's 1 / N comes last, in fp32: at 16 bits it would have drowned the probabilities.
                ctx.save_for_backward(torch.cat(hidden_grad).mul_(scale), weight_grad.mul_(scale))
                ctx.dtypes = hidden.dtype, weight.dtype
        return total * scale

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        hidden_grad, weight_grad = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        return (hidden_grad * grad).to(hidden_dtype), (weight_grad * grad).to(weight_dtype), None, None, None
