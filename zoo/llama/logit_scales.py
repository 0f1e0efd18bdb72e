"""Factors of the logits of a classifier's parts, fitted on validation rows.

A network that is trained from scratch on a few thousand texts fits them more closely than it predicts others, so that
the logits of its head are too large next to those of a bag of words, whose logits in training are held out. The two
factors maximize the likelihood of validation rows; one factor alone is the temperature of Guo et al. 2017,
https://arxiv.org/abs/1706.04599. The problem is convex.
"""

import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

PRIOR_MEAN, PRIOR_DEVIATION = (0.5, 1.0), 0.5  # of the factors of the head and of the bag, for few rows


def fit_scales(head: Tensor, bag: Tensor, targets: Tensor) -> list[float]:
    """The factors of the head's and the bag's logits, at least 0, with the highest posterior density.

    Args:
        head: (N, C) logits of the head.
        bag: (N, C) logits of the bag of words; zeros without one.
        targets: (N,) classes.
    """
    parts = torch.stack([head, bag]).double().cpu()  # (2, N, C)
    classes, mean = targets.cpu().long(), torch.tensor(PRIOR_MEAN, dtype=torch.float64)

    def loss(values: list[float]) -> tuple[float, list[float]]:
        scales = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        likelihood = F.cross_entropy((scales[:, None, None] * parts).sum(0), classes, reduction="sum")
        total = likelihood + ((scales - mean) / PRIOR_DEVIATION).square().sum() / 2
        [gradient] = torch.autograd.grad(total, scales)
        return total.item(), gradient.tolist()

    with torch.inference_mode(False), torch.enable_grad():
        parts, classes = parts.clone(), classes.clone()  # tensors of inference mode cannot be saved for a gradient
        return minimize(loss, PRIOR_MEAN, jac=True, method="L-BFGS-B", bounds=[(0, None)] * 2).x.tolist()
