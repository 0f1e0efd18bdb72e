"""In-context linear regression: each prompt consists of K noisy examples of one task, and each prompt has its own task.

    x_k ~ N(0, I_D),  y_k = w . x_k + e_k,  e_k ~ N(0, sigma2)

The task w is one of a pool of M tasks, all equally likely and drawn from N(0, I_D); with M = "inf" every prompt has a
new task from N(0, I_D). Raventós et al. 2023, https://arxiv.org/abs/2306.15063.

Every draw is a function of (seed, purpose, step) and of nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError, check_counts, check_number, check_positive
from zoo.training.random_streams import stream

BLOCK = 4096  # tasks of the pool are drawn in blocks of this size, so that a smaller pool is a prefix of a larger one

Diversity = int | Literal["inf"]


class Prompts(NamedTuple):
    """A batch of B prompts. y and w have a leading axis where several pools share x and noise."""

    x: Tensor  # (B, K, D)
    y: Tensor  # (..., B, K)
    w: Tensor | None = None  # (..., B, D) the task of each prompt; None if it is unknown

    def rows(self, rows: Tensor | slice) -> "Prompts":
        """The prompts at the given positions of the batch."""
        return Prompts(self.x[rows], self.y[..., rows, :], None if self.w is None else self.w[..., rows, :])

    @property
    def clean(self) -> Tensor:
        """The targets without their noise, (..., B, K); NaN where the tasks are unknown."""
        if self.w is None:
            return torch.full_like(self.y, torch.nan)
        return torch.einsum("...bd,bkd->...bk", self.w, self.x)


def as_prompts(batch: Any, task: "Task") -> Prompts:
    """`Prompts` from a batch of prompts, or from tensors (x, y) or (x, y, w).

    Raises:
        TypeError: the batch is something else.
        UserError: its D or K differs from the task's.
    """
    # A plain tuple or list is accepted if it holds the two or three tensors.
    if isinstance(batch, tuple | list) and not isinstance(batch, Prompts):
        batch = tuple(as_floats("a batch", part) if isinstance(part, np.ndarray) else part for part in batch)
    if not isinstance(batch, Prompts):
        is_sequence = isinstance(batch, tuple | list) and len(batch) in (2, 3)
        if not is_sequence or not all(isinstance(part, Tensor) for part in batch):
            raise TypeError(
                "ICRTransformer takes Prompts or tensors (x, y), x of shape (B, K, D) and y of shape (B, K), not a "
                f"{type(batch).__name__}"
            )
        batch = Prompts(*batch)
    if batch.x.ndim != 3 or batch.y.ndim < 2 or batch.y.shape[-2:] != batch.x.shape[:2]:
        raise UserError(
            f"x and y must have shapes (B, K, D) and (B, K), not {tuple(batch.x.shape)} and {tuple(batch.y.shape)}"
        )
    for name, size, expected in (("D", batch.x.shape[-1], task.D), ("K", batch.y.shape[-1], task.K)):
        if size != expected:
            raise UserError(f"the data has {name} {size}, but the model {expected}: make them equal")
    return batch


@dataclass
class Task:
    """The distribution of prompts.

    Args:
        D: number of components of each x, at least 1.
        K: number of pairs (x, y) in each prompt, at least 2.
        sigma2: variance of the noise in y, positive.
        M: number of tasks in the pool, from 1 to max_M, or "inf" for a new task in every prompt.
        max_M: largest M accepted, at least 1; a guard against typing errors.
        task_seed: seed of the pool and of the evaluation prompts; runs with the same value share them.

    Raises:
        UserError: a setting is outside its range.
    """

    D: int = 8
    K: int = 16
    sigma2: float = 0.125
    M: Diversity = 64
    max_M: int = 32768
    task_seed: int = 0

    def __post_init__(self) -> None:
        check_counts(D=self.D, max_M=self.max_M)
        pairs = "at least 2, for one example to learn from and one to predict"
        check_number("K", self.K, pairs, lambda K: K >= 2, whole=True)
        check_positive("sigma2, the variance of the noise,", self.sigma2)
        if isinstance(self.task_seed, bool) or not isinstance(self.task_seed, int):
            raise UserError(f"task_seed must be a whole number, not {self.task_seed!r}")
        if self.M == "inf":
            return
        if isinstance(self.M, bool) or not isinstance(self.M, int) or self.M < 1:
            raise UserError(f'M must be a number of tasks, at least 1, or "inf", not {self.M!r}')
        if self.max_M < self.M:
            raise UserError(f"M {self.M} is more tasks than the pool holds: raise max_M, which is {self.max_M}")

    def with_diversity(self, M: Diversity) -> Self:
        """A copy with another M; max_M is raised where necessary."""
        return replace(self, M=M, max_M=self.max_M if M == "inf" else max(self.max_M, M))

    def pool(self, device: str | torch.device = "cpu") -> Tensor:
        """A copy of the tasks, (M, D). The pool of a smaller M is the beginning of the pool of a larger one."""
        if self.M == "inf":
            raise UserError('M "inf" has no pool: every prompt has its own task')
        return _pool(self.M, self.D, self.task_seed, str(device)).clone()

    def draw(self, n: int, seed: int, *purpose: str | int, device: str | torch.device = "cpu") -> Prompts:
        """Draw n prompts, at least 1; `seed`, a whole number, and `purpose` name the random streams."""
        x, y, w = draw([self], n, seed, *purpose, device=device)
        assert w is not None
        return Prompts(x, y[0], w[0])


def draw(tasks: Sequence[Task], n: int, seed: int, *purpose: str | int, device: str | torch.device = "cpu") -> Prompts:
    """Draw n prompts for each of S tasks that differ in M only: x (n, K, D), y (S, n, K), w (S, n, D).

    The S sets share x, the noise and a uniform number u in [0, 1) per prompt, whose task is number floor(u M) of each
    pool. x, u and the noise come from separate random streams.

    Raises:
        UserError: n is not a whole number of at least 1, or the seed is not a whole number.
    """
    check_counts(n=n)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise UserError(f"seed must be a whole number, not {seed!r}")
    # Each quantity has its own random stream, so that none depends on the sizes of the others.
    K, D = tasks[0].K, tasks[0].D

    def normal(name: str, *shape: int) -> Tensor:
        generator = stream(seed, name, *purpose, device=device)
        return torch.randn(n, *shape, generator=generator, device=device, dtype=torch.float32)

    x, noise = normal("x", K, D), normal("noise", K)
    pools = [task for task in tasks if task.M != "inf"]
    w = x.new_empty(len(tasks), n, D)
    # Infinite pools: a new task per prompt.
    if len(pools) < len(tasks):
        w[:] = normal("new task", D)
    # Finite pools: all are beginnings of the largest, so one lookup serves them all.
    if pools:
        sizes = _sizes(tuple(task.M for task in pools), str(device))
        generator = stream(seed, "task", *purpose, device=device)
        u = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
        largest = max(pools, key=lambda task: task.M)
        pool = _pool(int(largest.M), largest.D, largest.task_seed, str(device))
        chosen = pool[(sizes[:, None] * u).long()]  # (pools, n, D)
        if len(pools) == len(tasks):
            w = chosen
        else:
            finite = [i for i, task in enumerate(tasks) if task.M != "inf"]
            for i, own in zip(finite, chosen, strict=True):
                w[i] = own
    return Prompts(x, torch.einsum("snd,nkd->snk", w, x) + tasks[0].sigma2 ** 0.5 * noise, w)


# Tensors that later calls share are no inference tensors, which autograd could not use, and are given to no caller.
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _sizes(sizes: tuple[int, ...], device: str) -> Tensor:
    """Sizes of S pools (S,), copied to the device once."""
    return torch.tensor(sizes, dtype=torch.float64, device=device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _pool(M: int, D: int, seed: int, device: str) -> Tensor:
    streams = [stream(seed, "pool", block) for block in range(-(-M // BLOCK))]
    blocks = [torch.randn(BLOCK, D, generator=generator, dtype=torch.float32, device="cpu") for generator in streams]
    return torch.cat(blocks)[:M].contiguous().to(device)


def as_floats(name: str, values: Any, device: str | torch.device | None = None) -> Tensor:
    """A floating-point tensor from a tensor, an array or lists of numbers; integers become fp64.

    Args:
        name: name of the argument, for the message.
        values: numbers of any depth.
        device: device of the result; None: the tensor's device, or the CPU.

    Raises:
        UserError: they are not numbers, or the rows differ in length.
    """
    if not isinstance(values, Tensor):
        try:
            array = np.asarray(values)
        except ValueError as error:
            raise UserError(f"{name} must be numbers in rows of equal length") from error
        # NumPy reads a bool next to a number as 1 or 0.
        has_bools = isinstance(values, list | tuple) and any(isinstance(v, bool) for v in np.array(values, object).flat)
        if array.dtype.kind not in "iuf" or has_bools:
            raise UserError(f"{name} must be numbers, in a tensor, an array or lists, not of type {array.dtype}")
        values = torch.from_numpy(array.astype(np.float32 if array.dtype == np.float32 else np.float64))
    if values.is_complex() or values.dtype == torch.bool:
        raise UserError(f"{name} must be real numbers, not of {values.dtype}")
    return (values if values.is_floating_point() else values.double()).to(device)


def check_prompt(task: Task, x_context: Tensor, y_context: Tensor, x_query: Tensor) -> None:
    """Check that examples (n, D), (n,) and queries (q, D) fit each other and the task.

    Raises:
        UserError: they do not; the message names the shape and the one that is needed.
    """
    # Every x has D numbers; an empty list may have any shape.
    for name, x in (("x_context", x_context), ("x_query", x_query)):
        if not x.ndim or (x.shape[1:] != (task.D,) and len(x)):
            raise UserError(f"{name} has shape {tuple(x.shape)}, and must be rows of D = {task.D} numbers")
    # One y for each example; the examples and the query are at most K pairs.
    if y_context.shape != x_context.shape[:1]:
        raise UserError(f"y_context has shape {tuple(y_context.shape)}, and must have a number for each x_context")
    if len(x_context) >= task.K:
        raise UserError(f"{len(x_context)} examples are too many: at most K - 1 = {task.K - 1} fit before a query")
    if not all(part.float().isfinite().all() for part in (x_context, y_context, x_query)):
        raise UserError("a number is NaN or infinite, or beyond 3.4e38, the range of fp32")
