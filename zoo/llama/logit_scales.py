"""Factors of the logits of a classifier's parts, fitted on validation rows.

A network that is trained from scratch on a few thousand texts fits them more closely than it predicts others, so that
the logits of its head are too large next to those of a bag of words, whose logits in training are held out. The two
factors maximize the likelihood of validation rows; one factor alone is the temperature of Guo et al. 2017,
https://arxiv.org/abs/1706.04599. The problem is convex. The head's factor is 0 unless it raises the
log-likelihood by more than 1, the criterion of Akaike 1974, https://doi.org/10.1109/TAC.1974.1100705, so that a network
that learned nothing does not make a bag of words worse.
"""

import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

PRIOR_MEAN, PRIOR_DEVIATION = (0.5, 1.0), 0.5  # of the factors of the head and of the bag, for few rows
LEAST_GAIN = 1.0  # nats, by which the head's factor raises the log-likelihood


def fit_scales(head: Tensor, bag: Tensor, targets: Tensor) -> list[float]:
    """The factors of the head's and the bag's logits, at least 0, with the highest posterior density.

    Args:
        head: (N, C) logits of the head.
        bag: (N, C) logits of the bag of words; zeros without one.
        targets: (N,) classes.

    Returns:
        The two factors. The head's factor is 0 unless it raises the log-likelihood by more than `LEAST_GAIN`.
    """
    with torch.inference_mode(False):
        # Copies: tensors of inference mode cannot be saved for a gradient.
        parts, classes = torch.stack([head, bag]).double().cpu().clone(), targets.cpu().long().clone()
        both, loss_of_both = _fit(parts, classes)
        if not bag.any() or both[0] == 0:
            return both
        alone, loss_of_bag = _fit(parts * parts.new_tensor([0.0, 1.0])[:, None, None], classes)
        return both if loss_of_bag - loss_of_both > LEAST_GAIN else [0.0, alone[1]]


def _fit(parts: Tensor, classes: Tensor) -> tuple[list[float], float]:
    """The factors of two parts (2, N, C), and the negative log-likelihood of the classes (N,) with them, in nats."""
    mean = parts.new_tensor(PRIOR_MEAN)

    def likelihood(scales: Tensor) -> Tensor:
        return F.cross_entropy((scales[:, None, None] * parts).sum(0), classes, reduction="sum")

    def loss(values: list[float]) -> tuple[float, list[float]]:
        scales = torch.tensor(values, dtype=parts.dtype, device=parts.device, requires_grad=True)
        total = likelihood(scales) + ((scales - mean) / PRIOR_DEVIATION).square().sum() / 2
        [gradient] = torch.autograd.grad(total, scales)
        return total.item(), gradient.tolist()

    with torch.enable_grad():
        scales = minimize(loss, PRIOR_MEAN, jac=True, method="L-BFGS-B", bounds=[(0, None)] * 2).x
    return scales.tolist(), likelihood(torch.from_numpy(scales)).item()
