"""The exact estimators compared with closed forms, known errors and plain loops."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zoo.errors import UserError
from zoo.icr import Task, dmmse, gradient_step, least_squares, references, ridge

SIGMA2 = 0.25
# Ridge's mean squared error, noise included, with D = 8 and K = 16 at k = 1 ... 16, known to 6e-4.
RIDGE = [
    8.250, 7.289, 6.342, 5.415, 4.518, 3.671, 2.897, 2.231, 1.703, 1.320, 1.056, 0.875, 0.750, 0.662, 0.598, 0.550,
]  # fmt: skip


def prompts(n, M="inf", dtype=torch.float64, **options):
    task = Task(sigma2=SIGMA2, M=M, **options)
    return task, [part.to(dtype) for part in task.draw(n, 1, "test")]


def mean_and_error(values):
    """The means (K,) of values (B, K), and their standard errors."""
    return values.mean(0), values.std(0) / len(values) ** 0.5


def each(task):
    """Every estimator for the task, as a function of x and y."""
    pool = task.with_diversity(7).pool().double()
    return {
        "ridge": lambda x, y: ridge(x, y, task.sigma2),
        "dmmse": lambda x, y: dmmse(x, y, pool, task.sigma2),
        "least_squares": least_squares,
        "gradient_step": lambda x, y: gradient_step(x, y, task.sigma2),
    }


def test_ridge_errors_equal_known_values():
    _, (x, y, _) = prompts(30000)
    reached, error = mean_and_error((ridge(x, y, SIGMA2) - y).square())
    assert ((reached - torch.tensor(RIDGE)).abs() < 3 * error + 6e-4).all()
    assert error.max() < 0.08


def test_ridge_equals_its_formula():
    _, (x, y, _) = prompts(5, D=3, K=6)
    got = ridge(x, y, SIGMA2)
    for b in range(5):
        for k in range(6):
            X = x[b, :k]
            w = torch.linalg.inv(X.T @ X + SIGMA2 * torch.eye(3)) @ X.T @ y[b, :k]
            torch.testing.assert_close(got[b, k], w @ x[b, k], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma2", [1e-6, 1e-9, 1e-11, 1e-13])
def test_ridge_is_exact_for_a_small_sigma2(sigma2):
    # With fewer pairs than dimensions X'X is singular, and the dual form X' (XX' + sigma2 I)^-1 y is well conditioned.
    _, (x, y, _) = prompts(50, K=5, D=8)
    for k in range(1, 5):
        before = x[:, :k]
        kernel = before @ before.mT + sigma2 * torch.eye(k, dtype=torch.float64)
        weights = (before.mT @ torch.linalg.solve(kernel, y[:, :k, None]))[..., 0]
        expected = (weights * x[:, k]).sum(-1)
        torch.testing.assert_close(ridge(x, y, sigma2)[:, k], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("chunk", [(1024, 1024), (7, 8), (4, 37), (1, 1)])
def test_dmmse_equals_a_loop(chunk, monkeypatch):
    monkeypatch.setitem(references.CHUNK, "cpu", chunk)
    monkeypatch.setattr(references, "PROMPTS", 3)
    task, (x, y, _) = prompts(5, M=37, D=3, K=6)
    pool = task.pool().double()
    got = dmmse(x, y, pool, SIGMA2)
    for b in range(5):
        for k in range(6):
            weights = [(-sum((y[b, j] - w @ x[b, j]) ** 2 for j in range(k)) / (2 * SIGMA2)) for w in pool]
            weights = [torch.as_tensor(weight, dtype=torch.float64).exp() for weight in weights]
            w = sum(weight * w for weight, w in zip(weights, pool, strict=True)) / sum(weights)
            torch.testing.assert_close(got[b, k], w @ x[b, k], rtol=1e-9, atol=1e-9)


def test_dmmse_of_small_pools():
    task, (x, y, w) = prompts(20000, M=1)
    answer = dmmse(x, y, task.pool().double(), SIGMA2)
    torch.testing.assert_close(answer, torch.einsum("bd,bkd->bk", w, x))  # the task is known without examples
    reached, error = mean_and_error((answer - y).square())
    assert ((reached - SIGMA2).abs() < 3 * error).all()
    task, (x, y, w) = prompts(50, M=33)
    answer = dmmse(x, y, task.pool().double(), SIGMA2)
    torch.testing.assert_close(answer[:, 0], x[:, 0] @ task.pool().double().mean(0))  # without examples: the mean task


def test_dmmse_with_scores_that_would_overflow():
    task, (x, _, w) = prompts(20, M=33)
    clean = torch.einsum("bd,bkd->bk", w, x)
    answer = dmmse(x, clean, task.pool().double(), 1e-9)  # scores of 1e10, of which only the largest counts
    torch.testing.assert_close(answer[:, 1:], clean[:, 1:])


def test_dmmse_on_a_large_pool_is_nearly_ridge():
    _, (x, y, _) = prompts(200, D=1, K=4)
    pool = Task(D=1, max_M=2**17, M=2**17).pool()
    apart = (dmmse(x, y, pool, SIGMA2) - ridge(x, y, SIGMA2)).square().mean()
    assert apart < 1e-3


@pytest.mark.parametrize("name", ["ridge", "dmmse", "least_squares", "gradient_step"])
def test_the_order_of_the_context_does_not_matter(name):
    task, (x, y, _) = prompts(4)
    answer = each(task)[name]
    before = answer(x, y)
    for k in (3, 9, 15):
        order = torch.cat([torch.randperm(k, generator=torch.Generator().manual_seed(k)), torch.arange(k, 16)])
        after = answer(x[:, order], y[:, order])
        torch.testing.assert_close(after[:, k:], before[:, k:], rtol=1e-8, atol=1e-8)
        assert not torch.allclose(after[:, 1:k], before[:, 1:k])


@pytest.mark.parametrize("name", ["ridge", "dmmse", "least_squares", "gradient_step"])
def test_dtype_causality_and_prefixes(name):
    task, (x, y, _) = prompts(4)
    answer = each(task)[name]
    whole = answer(x, y)
    got = answer(x.float(), y.float())
    assert (got.dtype, got.shape) == (torch.float32, (4, 16))
    torch.testing.assert_close(got.double()[:, :7], whole[:, :7], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(answer(x[:, :5], y[:, :5]), whole[:, :5])
    changed = y.clone()
    changed[:, 1] += 9  # the second y influences the third prediction, not the second
    torch.testing.assert_close(answer(x, changed)[:, :2], whole[:, :2])
    assert not torch.allclose(answer(x, changed)[:, 2], whole[:, 2])


def test_least_squares_fits_the_examples():
    _, (x, _, w) = prompts(2000, D=4, K=10)
    y = torch.einsum("bd,bkd->bk", w, x)
    got = least_squares(x, y)
    torch.testing.assert_close(got[:, 4:], y[:, 4:], rtol=1e-3, atol=1e-3)
    y += torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    got = least_squares(x, y)
    for k in range(10):
        w = torch.linalg.pinv(x[:, :k]) @ y[:, :k, None]
        expected = (x[:, k, None] @ w)[:, 0, 0]
        torch.testing.assert_close(got[:, k], expected, rtol=1e-2, atol=1e-2)  # some contexts are nearly singular


def test_gradient_step_errors_equal_known_values():
    _, (x, y, w) = prompts(30000)
    clean = torch.einsum("bd,bkd->bk", w, x)
    reached, error = mean_and_error((gradient_step(x, y, SIGMA2) - clean).square())
    n = torch.arange(16)
    expected = 8 * (8 + 1 + SIGMA2) / (n + 8 + 1 + SIGMA2)
    assert ((reached - expected).abs() < 3 * error).all()


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return out


@pytest.mark.parametrize("name", ["ridge", "dmmse", "least_squares", "gradient_step"])
def test_memory_is_bounded(name, monkeypatch):
    monkeypatch.setitem(references.CHUNK, "cpu", (64, 128))
    monkeypatch.setattr(references, "PROMPTS", 20)
    task, (x, y, _) = prompts(200, D=4, K=8)
    pool = task.with_diversity(2000).pool().double()
    answer = each(task) | {"dmmse": lambda x, y: dmmse(x, y, pool, SIGMA2)}
    with Largest() as largest:
        answer[name](x, y)
    # The inputs or one chunk. Without chunks there would be 25,600 numbers in Gram matrices, 3,200,000 in scores.
    assert largest.numbers <= max(64 * 128, pool.numel(), x.numel(), 20 * 8 * 4 * 4)


@pytest.mark.parametrize(
    ("x", "y", "tasks", "message"),
    [
        ((2, 3, 4), (2, 4), (5, 4), r"shapes \(B, K, D\) and \(B, K\), not \(2, 3, 4\) and \(2, 4\)"),
        ((3, 4), (3,), (5, 4), "for a single prompt"),
        ((), (), (5, 4), "x and y must have shapes"),
        ((2, 3, 4), (2, 3), (5, 3), r"tasks must have shape \(M, D = 4\), M at least 1, not \(5, 3\)"),
        ((2, 3, 4), (2, 3), (0, 4), "M at least 1"),
        ((2, 3, 4), (2, 3), (4,), r"tasks must be a floating-point tensor of shape \(M, D\), not \(4,\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x, y, tasks, message):
    x, y, tasks = (torch.zeros(shape) for shape in (x, y, tasks))
    with pytest.raises(UserError, match=message):
        dmmse(x, y, tasks, SIGMA2)
    if "tasks" not in message and "M at least" not in message:
        for estimate in (least_squares, lambda x, y: ridge(x, y, SIGMA2), lambda x, y: gradient_step(x, y, SIGMA2)):
            with pytest.raises(UserError, match=message):
                estimate(x, y)


def test_prompts_that_are_no_floating_point_tensors_are_refused():
    with pytest.raises(UserError, match=r"y must be a floating-point tensor, not torch\.int64"):
        ridge(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64), SIGMA2)
    with pytest.raises(UserError, match="x must be a floating-point tensor, not list"):
        least_squares([[[1.0]]], torch.zeros(1, 1))
