"""The task: nested pools, independent random streams, repeatable draws."""

import itertools

import pytest
import torch

from zoo.errors import UserError
from zoo.icr import ICRegConfig, Task
from zoo.icr.evaluation import evaluation
from zoo.icr.task import BLOCK, draw


def test_smaller_pools_are_prefixes_of_larger_ones():
    largest = Task(M=2 * BLOCK + 7).pool()
    assert largest.shape == (2 * BLOCK + 7, 8)
    for M in (1, 3, 64, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK):
        assert torch.equal(Task(M=M).pool(), largest[:M])
    assert len(largest.unique(dim=0)) == len(largest)  # no block is repeated
    assert not torch.equal(Task(M=3, task_seed=1).pool(), largest[:3])


def test_a_draw_is_a_function_of_seed_purpose_and_step():
    task = Task(M=5)
    first = task.draw(6, 0, "train", 3)
    torch.manual_seed(1)
    task.draw(6, 0, "train", 2)
    for part, again in zip(first, task.draw(6, 0, "train", 3), strict=True):
        assert torch.equal(part, again)
    for other in (task.draw(6, 1, "train", 3), task.draw(6, 0, "train", 4), task.draw(6, 0, "val", 3)):
        assert not torch.equal(first.x, other.x)


@pytest.mark.parametrize("M", [True, False, 0, 1.5, "many"])
def test_a_pool_size_that_is_no_whole_number_is_refused(M):
    with pytest.raises(UserError, match='M must be a number of tasks, at least 1, or "inf"'):
        Task(M=M)


@pytest.mark.parametrize("seed", [1.5, 1.0, True, "1", None])
def test_a_seed_that_is_no_whole_number_is_refused(seed):
    with pytest.raises(UserError, match="seed must be a whole number"):
        Task().draw(2, seed)
    with pytest.raises(UserError, match="task_seed must be a whole number"):
        Task(task_seed=seed)


@pytest.mark.parametrize("n", [-1, 1.5, True])
def test_a_number_of_prompts_that_is_no_count_is_refused(n):
    with pytest.raises(UserError, match="n must be"):
        Task().draw(n, 0)


def test_streams_are_independent():
    """Streams of different seeds, steps and purposes are uncorrelated; a run is not `seed + step` of another."""
    task, n, streams = Task(D=4, K=4, M="inf"), 1024, []
    for seed, step in itertools.product(range(3), range(4)):
        prompts = task.draw(n, seed, step)
        streams += [prompts.x[: n // 4], prompts.y - prompts.clean, prompts.w]
    for split, kind in itertools.product(("val", "test"), ("pretrain", "true")):
        prompts = evaluation(kind, Task(D=4, K=4, M=64), n, split).prompts
        streams += [prompts.x[: n // 4], prompts.y - prompts.clean]
    streams.append(Task(D=4, K=4, M=n).pool())
    # The beginning of each stream.
    values = torch.stack([s.flatten() for s in streams]).double()  # (streams, 4 n)
    correlations = torch.corrcoef(values) - torch.eye(len(values))
    assert correlations.abs().max() < 6 / values.shape[1] ** 0.5


@pytest.mark.parametrize("M", [4, 5, "inf"])
def test_distribution_of_draws(M):
    n = 20000
    prompts = Task(D=3, K=4, sigma2=0.25, M=M).draw(n, 0, "test")
    noise = (prompts.y - prompts.clean).flatten()
    for values, variance in ((prompts.x.flatten(), 1.0), (noise, 0.25)):
        assert values.mean().abs() < 4 * (variance / len(values)) ** 0.5
        assert abs(values.var() / variance - 1) < 4 * (2 / len(values)) ** 0.5
    if M == "inf":
        assert len(prompts.w.unique(dim=0)) == n
        torch.testing.assert_close(torch.cov(prompts.w.T), torch.eye(3), atol=0.06, rtol=0)
    else:
        tasks, counts = prompts.w.unique(dim=0, return_counts=True)
        pool = Task(D=3, M=M).pool()
        assert torch.equal(tasks, pool.unique(dim=0))
        assert (counts - n / M).abs().max() < 4 * (n / M) ** 0.5


def test_pools_share_x_noise_and_task_positions():
    tasks = [Task(M=M) for M in (2, 16, "inf")]
    x, y, w = together = draw(tasks, 50, 0, 9)
    noise = y - together.clean
    for i, task in enumerate(tasks):
        alone = task.draw(50, 0, 9)
        assert torch.equal(alone.x, x)
        assert torch.equal(alone.w, w[i])
        torch.testing.assert_close(y[i], alone.y, atol=1e-5, rtol=0)
        torch.testing.assert_close(noise[i], noise[0], atol=1e-5, rtol=0)
    where = [(w[i][:, None] == tasks[i].pool()).all(-1).int().argmax(-1) for i in (0, 1)]
    assert torch.equal(where[0], where[1] // 8)


def test_rows_and_clean_targets():
    prompts = Task(D=3, K=5).draw(10, 0, "test")
    some = prompts.rows(torch.tensor([7, 2]))
    for part, whole in zip(some, prompts, strict=True):
        assert torch.equal(part, whole[[7, 2]])
    stacked = prompts._replace(y=torch.stack([prompts.y, prompts.y + 1]), w=torch.stack([prompts.w, -prompts.w]))
    some = stacked.rows(slice(2, 4))
    assert some.y.shape == (2, 2, 5)
    torch.testing.assert_close(some.clean[0, 1, 4], prompts.w[3] @ prompts.x[3, 4])
    torch.testing.assert_close(some.clean[1], -some.clean[0])


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"M": 0}, 'M must be a number of tasks, at least 1, or "inf", not 0'),
        ({"M": -3}, "not -3"),
        ({"M": 1.5}, "not 1.5"),
        ({"M": "many"}, "not 'many'"),
        ({"M": 2**16}, "M 65536 is more tasks than the pool holds: raise max_M, which is 32768"),
        ({"K": 1}, "K must be at least 2"),
        ({"D": 0}, "D must be at least 1, not 0"),
        ({"sigma2": 0.0}, "sigma2, the variance of the noise, must be positive, not 0.0"),
        ({"sigma2": float("nan")}, "must be positive, not nan"),
        ({"sigma2": float("inf")}, "must be positive, not inf"),
        ({"d_model": 10, "n_heads": 4}, "d_model 10 is not a multiple of n_heads 4"),
        ({"n_layers": 0}, "n_layers must be at least 1, not 0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        ICRegConfig(**settings)


def test_with_diversity_raises_max_M():
    assert Task().with_diversity(2**16).pool().shape == (2**16, 8)
    assert Task(task_seed=3).with_diversity("inf") == Task(M="inf", task_seed=3)
    with pytest.raises(ValueError, match="has no pool"):
        Task(M="inf").pool()


def test_a_changed_pool_does_not_change_later_draws():
    task = Task(D=3, K=5, M=7, task_seed=41)
    expected, drawn = task.pool(), task.draw(4, 0, "train")
    task.pool().zero_()
    assert torch.equal(Task(D=3, K=5, M=7, task_seed=41).pool(), expected)
    for part, again in zip(drawn, task.draw(4, 0, "train"), strict=True):
        assert torch.equal(part, again)


def test_a_pool_first_used_in_inference_mode_has_gradients_later():
    task = Task(D=3, K=5, M=7, task_seed=42)
    with torch.inference_mode():
        task.draw(4, 0, "val")
    layer = torch.nn.Linear(3, 1)
    layer(task.pool()).sum().backward()
    torch.testing.assert_close(layer.weight.grad[0], task.pool().sum(0))
    layer(task.draw(4, 0, "val").w).sum().backward()
