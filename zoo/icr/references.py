"""What a model's answers are held against: the best estimators of linear regression in context, exactly.

All take x (B, K, D) and y (B, K) and return (B, K): at place k the prediction of y_k from the k - 1 pairs before it.
They compute in fp64 and in bounded memory, some prompts at a time. Raventós et al. 2023,
https://arxiv.org/abs/2306.15063, section 2; the step of gradient descent as in von Oswald et al. 2023,
https://arxiv.org/abs/2212.07677.
"""

from collections.abc import Callable

import torch
from torch import Tensor

PROMPTS = 4096  # at a time: tensors of 34 MB where K = 16 and D = 8
# Scores of dmmse at a time, places by tasks: what stays in a CPU's cache (8 MB of fp64), and what fills a GPU (256 MB).
CHUNK = {"cpu": (1024, 1024), "cuda": (4096, 8192)}


def ridge(x: Tensor, y: Tensor, sigma2: float) -> Tensor:
    """w_k = (X'X + sigma2 I)^-1 X'y: Bayes-optimal where tasks come from N(0, I) and the noise from N(0, sigma2)."""

    def weights(gram: Tensor, product: Tensor) -> Tensor:
        gram.diagonal(dim1=-2, dim2=-1).add_(sigma2)
        return torch.cholesky_solve(product[..., None], torch.linalg.cholesky(gram))[..., 0]

    return _linear(x, y, weights)


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    """w_k = X^+ y: of the weights that fit best, the shortest."""

    def weights(gram: Tensor, product: Tensor) -> Tensor:
        inverse = torch.linalg.pinv(gram, rtol=1e-12, hermitian=True)  # torch's rtol takes rounding for directions seen
        return (inverse @ product[..., None])[..., 0]

    return _linear(x, y, weights)


def gradient_step(x: Tensor, y: Tensor, sigma2: float) -> Tensor:
    """w_k = X'y / (k + D + sigma2): one step of gradient descent from 0, of the best length for tasks from N(0, I).

    It is what a layer of linear attention can do, and leaves an excess error of D (D + 1 + sigma2) / (k + D + sigma2).
    """
    places = torch.arange(1, x.shape[1] + 1, dtype=torch.float64, device=x.device)
    return _linear(x, y, lambda gram, product: product / (places + x.shape[2] + sigma2)[:, None])


def dmmse(x: Tensor, y: Tensor, tasks: Tensor, sigma2: float) -> Tensor:
    """The mean over tasks (M, D), weighted by how well each explains the pairs before: Bayes-optimal for this pool.

        w_k = sum_i softmax_i(-sum_{j<k} (y_j - w_i . x_j)^2 / (2 sigma2)) w_i

    Multiplied out, task i scores (2 b'w_i - w_i'G w_i) / (2 sigma2) with G = X'X and b = X'y: an attention whose keys
    are w_i and its products with itself. The pool goes by in chunks under an online softmax (see CHUNK).
    """
    device = x.device.type
    places, chunk = CHUNK.get(device, CHUNK["cpu"])
    first, second = torch.triu_indices(x.shape[2], x.shape[2], device=x.device)
    times = torch.where(first == second, -0.5, -1.0).double()  # what is not on the diagonal stands there twice

    def attend(query: Tensor) -> Tensor:
        top = query.new_full((len(query), 1), -torch.inf)  # the largest score so far
        total = query.new_zeros(len(query), x.shape[2] + 1)  # the sum of exp(score - top) times [w_i, 1]
        for some in tasks.split(chunk):
            some = some.double()
            scores = query @ torch.cat([some[:, first] * some[:, second], some], 1).T  # (places, chunk)
            now = torch.maximum(top, scores.amax(1, keepdim=True))
            weights = scores.sub_(now).exp_()
            total = total * (top - now).exp() + weights @ torch.cat([some, some.new_ones(len(some), 1)], 1)
            top = now
        return total[:, :-1] / total[:, -1:]

    def weights(gram: Tensor, product: Tensor) -> Tensor:
        query = torch.cat([gram[..., first, second] * times, product], -1) / sigma2  # (B, K, D (D + 1) / 2 + D)
        return torch.cat([attend(some) for some in query.flatten(0, 1).split(places)]).view_as(product)

    return _linear(x, y, weights)


def _linear(x: Tensor, y: Tensor, weights: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Predict by the weights (B, K, D) that follow from the sums, over the pairs before each place, of xx' and yx."""
    predictions = []
    for some_x, some_y in zip(x.double().split(PROMPTS), y.double().split(PROMPTS), strict=True):
        gram, product = some_x[..., None] * some_x[..., None, :], some_x * some_y[..., None]
        gram, product = gram.cumsum(1) - gram, product.cumsum(1) - product  # (B, K, D, D), (B, K, D)
        predictions.append((weights(gram, product) * some_x).sum(-1))
    return torch.cat(predictions).to(x.dtype)
