"""Exact estimators of linear regression in context, with which a model's predictions are compared.

All take x (B, K, D) and y (B, K) and return (B, K): at position k the prediction of y_k from the k - 1 pairs before it.
They compute in fp64 and in bounded memory, a part of the prompts at a time. Raventós et al. 2023,
https://arxiv.org/abs/2306.15063, section 2; the step of gradient descent as in von Oswald et al. 2023,
https://arxiv.org/abs/2212.07677. UserError says which argument has a wrong shape or type.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from zoo.errors import UserError, check_positive, check_weight
from zoo.layers.cumulative_sum import cumulative_sum

PROMPTS = 4096  # prompts computed together: tensors of 34 MB for K = 16 and D = 8
# Positions x tasks in a block of dMMSE scores: fits a CPU cache (8 MB of fp64) or fills a GPU (256 MB).
CHUNK = {"cpu": (1024, 1024), "cuda": (4096, 8192)}


def ridge(x: Tensor, y: Tensor, sigma2: float) -> Tensor:
    """Ridge regression, w_k = (X'X + sigma2 I)^-1 X'y: Bayes-optimal for tasks N(0, I) and noise N(0, sigma2).

    Args:
        x: inputs (B, K, D), floating point.
        y: outputs (B, K).
        sigma2: variance of the noise in y, at least 0; 0 gives least squares.

    Returns:
        Predictions (B, K) in x's dtype: at position k of y_k, from the k - 1 pairs before it; 0 at the first.

    Raises:
        UserError: a shape or type is wrong, or sigma2 is negative.
    """

    check_weight("sigma2, the variance of the noise,", sigma2)

    def weights(gram: Tensor, product: Tensor) -> Tensor:
        # X'X + sigma2 I is positive definite: solve by its Cholesky factor.
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        factor, info = torch.linalg.cholesky_ex(gram + sigma2 * identity)
        solution = torch.cholesky_solve(product[..., None], factor)[..., 0]
        # For x so large that sigma2 is small next to X'X the factor is inexact, or does not exist. Then leave out the
        # directions without data, where the rounding of X'y would be divided by sigma2.
        failed = (info > 0) | (gram.diagonal(dim1=-2, dim2=-1).sum(-1) > 1e6 * sigma2)
        if failed.any():
            solution = solution.clone()
            solution[failed] = _shortest_weights(gram[failed], product[failed], sigma2)
        return solution

    return _linear(x, y, weights)


def least_squares(x: Tensor, y: Tensor) -> Tensor:
    """Least squares, w_k = X^+ y: the shortest of the weights that fit best. Arguments and result as in `ridge`."""

    return _linear(x, y, _shortest_weights)


def _shortest_weights(gram: Tensor, product: Tensor, sigma2: float = 0.0) -> Tensor:
    """w (..., D) of ridge regression, 0 in directions without data; without sigma2 the shortest w that fits best.

    From X'X (..., D, D) and X'y (..., D); NaN where these are not finite.
    """
    is_finite = gram.isfinite().all(-1).all(-1)[..., None] & product.isfinite()
    gram = gram.where(is_finite[..., :1, None], 0)
    if sigma2:
        values, vectors = torch.linalg.eigh(gram)  # (..., D), (..., D, D)
        factors = (1 / (values + sigma2)).where(values > 1e-12 * values[..., -1:], 0)
        inverse = vectors * factors[..., None, :] @ vectors.mT
    else:
        inverse = torch.linalg.pinv(gram, rtol=1e-12, hermitian=True)  # torch's default counts rounding as data
    return (inverse @ product[..., None])[..., 0].where(is_finite, torch.nan)


def gradient_step(x: Tensor, y: Tensor, sigma2: float) -> Tensor:
    """One step of gradient descent from 0, w_k = X'y / (k + D + sigma2), of the best length for tasks from N(0, I).

    One layer of linear attention can compute it. Its excess error is D (D + 1 + sigma2) / (k + D + sigma2).
    Arguments, result and errors as in `ridge`. Von Oswald et al. 2023, https://arxiv.org/abs/2212.07677.
    """
    check_weight("sigma2, the variance of the noise,", sigma2)
    _check_shapes(x, y)
    # k, the position counted from 1, before which there are k - 1 pairs.
    position = torch.arange(1, x.shape[1] + 1, dtype=torch.float64, device=x.device)
    return _linear(x, y, lambda gram, product: product / (position + x.shape[2] + sigma2)[:, None])


def dmmse(x: Tensor, y: Tensor, tasks: Tensor, sigma2: float) -> Tensor:
    """The mean over tasks (M, D), weighted by their likelihood given the pairs before: Bayes-optimal for this pool.

    The discrete minimum mean squared error estimator of Raventós et al. 2023, https://arxiv.org/abs/2306.15063:

        w_k = sum_i softmax_i(-sum_{j<k} (y_j - w_i . x_j)^2 / (2 sigma2)) w_i

    Multiplied out, the score of task i is (2 b'w_i - w_i'G w_i) / (2 sigma2) with G = X'X and b = X'y. This is
    attention whose keys are w_i and the products of its components. The pool is read in chunks with an online softmax
    (see CHUNK).

    Args:
        x: inputs (B, K, D), floating point.
        y: outputs (B, K).
        tasks: the pool, weights (M, D), floating point, M at least 1.
        sigma2: variance of the noise in y, positive.

    Returns:
        Predictions (B, K) in x's dtype: at position k of y_k, from the k - 1 pairs before it.

    Raises:
        UserError: a shape or type is wrong, or sigma2 is not positive.
    """
    check_positive("sigma2, the variance of the noise,", sigma2)
    _check_shapes(x, y)
    if not isinstance(tasks, Tensor) or not tasks.is_floating_point() or tasks.ndim != 2:
        given = tuple(tasks.shape) if isinstance(tasks, Tensor) else type(tasks).__name__
        raise UserError(f"tasks must be a floating-point tensor of shape (M, D), not {given}")
    if tasks.shape[1] != x.shape[2] or not len(tasks):
        raise UserError(f"tasks must have shape (M, D = {x.shape[2]}), M at least 1, not {tuple(tasks.shape)}")
    # A task's score is the product of a query (G and b) and a key (w w' and w); G and ww' are symmetric,
    # so that their upper triangles are enough.
    device = x.device.type
    rows, chunk = CHUNK.get(device, CHUNK["cpu"])
    first, second = torch.triu_indices(x.shape[2], x.shape[2], device=x.device)
    times = torch.where(first == second, -0.5, -1.0).double()  # an entry off the diagonal counts twice

    def attend(query: Tensor) -> Tensor:
        """Weighted means of the tasks (rows, D) for queries (rows, D (D + 1) / 2 + D)."""
        largest = query.new_full((len(query), 1), -torch.inf)  # the largest score so far
        total = query.new_zeros(len(query), x.shape[2] + 1)  # the sum of exp(score - largest) times [w_i, 1]
        for part in tasks.split(chunk):
            part = part.double()
            scores = query @ torch.cat([part[:, first] * part[:, second], part], 1).T  # (rows, chunk)
            # Online softmax: rescale the sums so far to the new largest score, then add this chunk's terms.
            new_largest = torch.maximum(largest, scores.amax(1, keepdim=True))
            weights = scores.sub_(new_largest).exp_()
            total = total * (largest - new_largest).exp() + weights @ torch.cat([part, part.new_ones(len(part), 1)], 1)
            largest = new_largest
        return total[:, :-1] / total[:, -1:]

    def weights(gram: Tensor, product: Tensor) -> Tensor:
        query = torch.cat([gram[..., first, second] * times, product], -1) / sigma2  # (B, K, D (D + 1) / 2 + D)
        return torch.cat([attend(part) for part in query.flatten(0, 1).split(rows)]).view_as(product)

    return _linear(x, y, weights)


def _linear(x: Tensor, y: Tensor, weights: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Predictions of a linear estimator (B, K).

    Args:
        x, y: the prompts.
        weights: computes w (B, K, D) from the sums of xx' (B, K, D, D) and of yx (B, K, D) over the pairs before each
            position.
    """
    _check_shapes(x, y)
    # Sums over the pairs before each position. (A sum from which the own term is subtracted would lose the others
    # where the own term is large.)
    predictions = [x.new_zeros(0, *y.shape[1:], dtype=torch.float64)]
    for x_part, y_part in zip(x.double().split(PROMPTS), y.double().split(PROMPTS), strict=True):
        gram, product = x_part[..., None] * x_part[..., None, :], x_part * y_part[..., None]
        gram, product = _sums_before(gram), _sums_before(product)  # (B, K, D, D), (B, K, D)
        predictions.append((weights(gram, product) * x_part).sum(-1))
    return torch.cat(predictions).to(x.dtype)


def _sums_before(terms: Tensor) -> Tensor:
    """Sums over all earlier positions of terms (B, K, ...), 0 at the first position."""
    return torch.cat([torch.zeros_like(terms[:, :1]), cumulative_sum(terms[:, :-1], 1)], 1)


def _check_shapes(x: Tensor, y: Tensor) -> None:
    """Raises UserError unless x and y are floating-point tensors of shapes (B, K, D) and (B, K)."""
    for name, part in (("x", x), ("y", y)):
        if not isinstance(part, Tensor) or not part.is_floating_point():
            given = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise UserError(f"{name} must be a floating-point tensor, not {given}")
    if x.ndim != 3 or y.shape != x.shape[:2]:
        raise UserError(
            f"x and y must have shapes (B, K, D) and (B, K), not {tuple(x.shape)} and {tuple(y.shape)}: pass x[None] "
            "and y[None] for a single prompt"
        )
