"""Linear regression to be learnt in context: prompts of K noisy examples, each prompt with a task of its own.

    x_k ~ N(0, I_D),  y_k = w . x_k + e_k,  e_k ~ N(0, sigma2)

where w is one of a pool of M tasks, each equally likely and itself drawn from N(0, I_D), or ("inf") one
drawn anew from there.
Raventós et al. 2023, https://arxiv.org/abs/2306.15063. Every draw is a function of (seed, purpose, step) alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.training.random_streams import stream

BLOCK = 4096  # tasks of the pool that are drawn at a time, so that a smaller pool begins a larger one

Diversity = int | Literal["inf"]


class Prompts(NamedTuple):
    """B prompts; the leading axis of y and w is there where several pools share x and noise."""

    x: Tensor  # (B, K, D)
    y: Tensor  # (..., B, K)
    w: Tensor  # (..., B, D) the task of each

    def rows(self, rows: Tensor | slice) -> "Prompts":
        """Some of the prompts."""
        return Prompts(self.x[rows], self.y[..., rows, :], self.w[..., rows, :])

    @property
    def clean(self) -> Tensor:
        """(..., B, K) the targets without their noise."""
        return torch.einsum("...bd,bkd->...bk", self.w, self.x)


@dataclass
class Task:
    """What is asked; the names and defaults are those of the script this study comes from.

    Args:
        D: numbers in each x.
        K: pairs (x, y) in each prompt.
        sigma2: variance of the noise.
        M: tasks in the pool, or "inf".
        max_M: how many the pool may hold at most: a larger M is taken for a slip.
        task_seed: of the pool and of the sets for evaluation, which all runs share.

    Raises:
        ValueError: a setting makes no sense.
    """

    D: int = 8
    K: int = 16
    sigma2: float = 0.125
    M: Diversity = 64
    max_M: int = 32768
    task_seed: int = 0

    def __post_init__(self) -> None:
        if self.D < 1:
            raise UserError(f"D must be at least 1, not {self.D}")
        if self.K < 2:
            raise UserError(f"K must be at least 2, for one example to learn from and one to predict, not {self.K}")
        if not 0 < self.sigma2 < float("inf"):
            raise UserError(f"sigma2, the variance of the noise, must be positive, not {self.sigma2}")
        if self.M == "inf":
            return
        if not isinstance(self.M, int) or self.M < 1:
            raise UserError(f'M must be a number of tasks, at least 1, or "inf", not {self.M!r}')
        if self.max_M < self.M:
            raise UserError(f"M {self.M} is more tasks than the pool holds: raise max_M, which is {self.max_M}")

    def with_diversity(self, M: Diversity) -> Self:
        """The same with another M, of which max_M does not stand in the way."""
        return replace(self, M=M, max_M=self.max_M if M == "inf" else max(self.max_M, M))

    def pool(self, device: str | torch.device = "cpu") -> Tensor:
        """(M, D) the tasks; those of a smaller M come first among those of a larger one."""
        if self.M == "inf":
            raise UserError('M "inf" has no pool: every prompt has a task of its own')
        return _pool(self.M, self.D, self.task_seed, str(device))

    def draw(self, n: int, seed: int, *purpose: str | int, device: str | torch.device = "cpu") -> Prompts:
        """n prompts."""
        x, y, w = draw([self], n, seed, *purpose, device=device)
        return Prompts(x, y[0], w[0])


def draw(
    tasks: Sequence[Task], n: int, seed: int, *purpose: str | int, device: str | torch.device = "cpu"
) -> Prompts:
    """n prompts for each of S tasks that differ in M alone: y (S, n, K), w (S, n, D).

    They share x and noise, and each prompt's place in its pool: the draw u in [0, 1) is task floor(u M). x, tasks and
    noise each have a stream of their own.
    """
    K, D = tasks[0].K, tasks[0].D

    def normal(name: str, *shape: int) -> Tensor:
        return torch.randn(n, *shape, generator=stream(seed, name, *purpose, device=device), device=device)

    x, noise = normal("x", K, D), normal("noise", K)
    pools = [task for task in tasks if task.M != "inf"]
    w = x.new_empty(len(tasks), n, D)
    if len(pools) < len(tasks):
        w[:] = normal("new task", D)
    if pools:
        sizes = torch.tensor([task.M for task in pools], dtype=torch.float64, device=device)
        generator = stream(seed, "task", *purpose, device=device)
        u = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
        largest = max(pools, key=lambda task: task.M)
        chosen = largest.pool(device)[(sizes[:, None] * u).long()]
        if len(pools) == len(tasks):
            w = chosen
        else:
            w[[i for i, task in enumerate(tasks) if task.M != "inf"]] = chosen
    return Prompts(x, torch.einsum("snd,nkd->snk", w, x) + tasks[0].sigma2**0.5 * noise, w)


@lru_cache(maxsize=64)
def _pool(M: int, D: int, seed: int, device: str) -> Tensor:
    blocks = [torch.randn(BLOCK, D, generator=stream(seed, "pool", b)) for b in range(-(-M // BLOCK))]
    return torch.cat(blocks)[:M].contiguous().to(device)


def check_prompt(task: Task, x_context: Tensor, y_context: Tensor, x_query: Tensor) -> None:
    """Raise ValueError where contexts (n, D), (n,) and queries (q, D) do not fit one another or the task."""
    for name, x in (("x_context", x_context), ("x_query", x_query)):
        if x.shape[1:] != (task.D,) and not (name == "x_context" and len(x) == 0):
            raise UserError(f"{name} has shape {tuple(x.shape)}, and must be rows of D = {task.D} numbers")
    if y_context.shape != x_context.shape[:1]:
        raise UserError(f"y_context has shape {tuple(y_context.shape)}, and must have a number for each x_context")
    if len(x_context) >= task.K:
        raise UserError(f"{len(x_context)} examples leave no room for a query: the context holds K - 1 = {task.K - 1}")
    if not len(x_query):
        raise UserError("x_query is empty: there is nothing to predict")
    if not all(part.isfinite().all() for part in (x_context, y_context, x_query)):
        raise UserError("a number is NaN or infinite")
