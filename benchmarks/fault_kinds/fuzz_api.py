"""Mutated arguments of the Python API: a result, or UserError with one sentence."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from benchmarks.fault_kinds.cases import Kind, Outcome, outcome_of
from benchmarks.fault_kinds.mutations import mutate, odd_value
from zoo.errors import UserError
from zoo.icr import ICRTransformer, dmmse, predict_from_prompt, ridge
from zoo.regress_lm import Example, ExampleInput, RegressLM
from zoo.revdeq import solve

ARRAYS = (
    np.zeros(3), np.zeros((2, 4)), np.zeros((2, 4, 1), dtype=np.int64), np.array(["a"]), np.array([None]),
    torch.zeros(0, 4), torch.zeros(3, 4), torch.ones(3, dtype=torch.int64), torch.zeros(9, 4), torch.zeros(4),
    torch.full((3,), torch.nan), torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, 5), torch.zeros(1, 9, 4),
    torch.zeros(1, 3, 5), torch.zeros(1, 0, 4), torch.zeros(1, 9), torch.zeros(()), [[1.0, 2.0], [3.0]], [], None,
)  # fmt: skip


TENSORS = tuple(array for array in ARRAYS if isinstance(array, torch.Tensor) and array.is_floating_point())


@functools.cache
def _regress_lm(objectives: int) -> RegressLM:
    return RegressLM.from_scratch(32, dim=8, n_heads=2, n_objectives=objectives)


@functools.cache
def _icr() -> ICRTransformer:
    torch.manual_seed(0)
    return ICRTransformer(D=4, K=8, M=8, d_model=8, d_mlp=8, n_heads=2, n_layers=1).eval()


class _Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if z.shape[-1] != 4:
            raise UserError("this layer takes 4 features")  # the errors of f are its author's
        return torch.tanh(self.linear(z.to(self.linear.weight.dtype)) / 2 + x)


def _change(arguments: dict[str, Any], rng: Random, arrays: Sequence[Any] = ARRAYS) -> dict[str, Any]:
    """Arguments of which one or two have another value: a tensor one of `arrays`, a list a mutated list."""
    changed = dict(arguments)
    for name in rng.sample([*arguments], min(len(arguments), rng.choice([1, 1, 2]))):
        value = arguments[name]
        if isinstance(value, torch.Tensor):
            changed[name] = rng.choice(arrays)
        else:
            changed[name] = mutate(value, rng) if isinstance(value, list) else odd_value(rng)
    return changed


def _example(rng: Random, objectives: int) -> Any:
    """An example, often with an odd text or odd numbers."""
    right_y: Any = 0.5 if objectives == 1 else [0.5, -1.0]
    x = "a fox" if rng.random() < 0.7 else odd_value(rng, ARRAYS)
    y = right_y if rng.random() < 0.5 else odd_value(rng, ARRAYS)
    return rng.choice([Example(x=x, y=y), Example(x=x, y=y), ExampleInput(x=x), odd_value(rng, ARRAYS)])


def _raise(error: UserError) -> None:
    raise error


def regress_lm(rng: Random, folder: Path) -> Callable[[], Any]:
    """RegressLM: examples, numbers of samples, batch sizes and settings of fine_tune, sample and log_prob."""
    objectives = rng.choice([1, 2])
    model = _regress_lm(objectives)
    right = Example("a fox", 0.5 if objectives == 1 else [0.5, 1.0])
    try:
        examples: Any = [right, right] if rng.random() < 0.5 else [_example(rng, objectives) for _ in range(2)]
    except UserError as error:  # an example itself may refuse its numbers
        return functools.partial(_raise, error)
    which = rng.randrange(3)
    if which == 0:
        return lambda: model.log_prob(**_change({"examples": examples, "batch_size": 4}, rng))
    if which == 1:
        arguments = {"inputs": examples, "num_samples": 2, "temperature": 1.0, "top_k": None, "seed": 0,
                     "batch_size": 4}  # fmt: skip
        return lambda: model.sample(**_change(arguments, rng))
    arguments = {"examples": examples * 3, "validation_examples": None, "seed": 0, "max_epochs": 1, "batch_size": 4,
                 "lr": 1e-9, "warmup_share": 0.05, "patience": 1, "clip": 1.0, "progress": False}  # fmt: skip
    changed = _change(arguments, rng) | {"progress": False}
    if isinstance(changed["max_epochs"], int):
        changed["max_epochs"] = min(changed["max_epochs"], 2)  # many epochs are allowed
    return lambda: RegressLM.from_scratch(32, dim=8, n_heads=2, n_objectives=objectives).fine_tune(**changed)


def icr(rng: Random, folder: Path) -> Callable[[], Any]:
    """ICR: shapes and types of prompts for predict_from_prompt, ridge, dmmse and the model itself."""
    x, y, query = torch.randn(3, 4), torch.randn(3), torch.randn(2, 4)
    which = rng.randrange(4)
    if which == 0:
        arguments = {"x_context": x, "y_context": y, "x_query": query}
        return lambda: predict_from_prompt(_icr(), **_change(arguments, rng))
    if which == 1:
        return lambda: ridge(**_change({"x": x[None], "y": y[None]}, rng, TENSORS), sigma2=0.25)
    if which == 2:
        changed = _change({"x": x[None], "y": y[None], "tasks": torch.randn(5, 4)}, rng, TENSORS)
        return lambda: dmmse(**changed, sigma2=0.25)
    return lambda: _icr()(**_change({"x": x[None], "y": y[None]}, rng, TENSORS))


def revdeq(rng: Random, folder: Path) -> Callable[[], Any]:
    """RevDEQ: arguments of solve()."""
    arguments = {"x": torch.randn(2, 4), "z0": None, "beta": 0.5, "max_steps": 3, "tol": None,
                 "backward": "reversible", "solver": "reversible", "backward_steps": None, "keep_every": None,
                 "max_reconstruction_error": 1e-3}  # fmt: skip
    changed = _change(arguments, rng)
    if isinstance(changed["max_steps"], int):
        changed["max_steps"] = min(changed["max_steps"], 50)  # many steps are allowed
    return lambda: solve(_Layer(), **changed)


APIS: dict[str, tuple[Callable[[Random, Path], Callable[[], Any]], int]] = {
    "regress-lm-api": (regress_lm, 500),
    "icr-api": (icr, 1000),
    "revdeq-api": (revdeq, 1000),
}


def _kind(name: str) -> Kind:
    change, cases = APIS[name]

    def try_arguments(index: int, rng: Random, folder: Path) -> Outcome:
        torch.manual_seed(0)
        return outcome_of(change(rng, folder))

    about = (change.__doc__ or "").rstrip(".")
    return Kind(f"fuzz-{name}", f"mutated: {about}", try_arguments, cases=cases, quick=40, seconds=20)


FUZZ_API = {kind.name: kind for kind in map(_kind, APIS)}
