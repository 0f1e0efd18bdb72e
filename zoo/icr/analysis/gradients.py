"""Gradients of a model's expected loss with respect to the distribution of its prompts.

    L = E[mean over k of (f(x, y)_k - y_k)^2],  x_k = a + b * u_k,  w = c + d * v,  y_k = w . x_k + g + h r_k

with u, v and r standard normal and one w for all pairs of a prompt. There are 4D + 2 parameters: a, b, c, d are vectors
of D numbers, g and h are numbers. The gradient is estimated by differentiation through the draws (Kingma & Welling
2014, https://arxiv.org/abs/1312.6114). The tests compare it with the score function (Williams 1992,
https://doi.org/10.1007/BF00992696), which needs no derivative of f and has a higher variance.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.icr.analysis.saved_models import SavedModel
from zoo.icr.predict import evaluate_ood_score
from zoo.icr.references import ridge
from zoo.icr.task import Task
from zoo.training.random_streams import stream

PARTS = ("x_mean", "x_sd", "task_mean", "task_sd", "noise_mean", "noise_sd")
BATCH = 256  # prompts per backward pass, to bound the memory for activations

Predictor = Callable[[Tensor, Tensor], Tensor]  # x (B, K, D), y (B, K) -> (B, K)


class Normals(NamedTuple):
    """Standard normal draws from which n prompts are computed."""

    x: Tensor  # (n, K, D)
    task: Tensor  # (n, D)
    noise: Tensor  # (n, K)


class Estimate(NamedTuple):
    """A mean over prompts and its standard error."""

    value: Tensor
    error: Tensor


def normals(task: Task, n: int, seed: int, device: str | torch.device = "cpu") -> Normals:
    """Draws for n prompts; the same for all models of a task."""

    def draw(name: str, *shape: int) -> Tensor:
        generator = stream(seed, "gradients", name, device=device)
        return torch.randn(n, *shape, generator=generator, dtype=torch.float32, device=device)

    return Normals(draw("x", task.K, task.D), draw("task", task.D), draw("noise", task.K))


def prior(task: Task) -> Tensor:
    """The parameters (4D + 2,) of the task with M = "inf": means 0, standard deviations 1 and sqrt(sigma2)."""
    values = [0.0] * task.D + [1.0] * task.D
    return torch.tensor([*values, *values, 0.0, task.sigma2**0.5], dtype=torch.float32)


def parts(parameters: Tensor) -> dict[str, Tensor]:
    """Split parameters (..., 4D + 2) by name: four of shape (..., D), two of (..., 1)."""
    D = (parameters.shape[-1] - 2) // 4
    return dict(zip(PARTS, parameters.split([D, D, D, D, 1, 1], -1), strict=True))


def losses(model: Predictor, parameters: Tensor, draws: Normals) -> Tensor:
    """The loss (n,) of each prompt, with parameters (n, 4D + 2)."""
    # Compute x, w and y from the standard normal draws, as in the module's formula.
    p = parts(parameters)
    x = p["x_mean"][:, None] + p["x_sd"][:, None] * draws.x  # (n, K, D)
    w = p["task_mean"] + p["task_sd"] * draws.task  # (n, D)
    y = torch.einsum("nd,nkd->nk", w, x) + p["noise_mean"] + p["noise_sd"] * draws.noise  # (n, K)
    return (model(x, y) - y).square().mean(-1)


def reparameterised(model: Predictor, parameters: Tensor, draws: Normals) -> tuple[Estimate, Estimate]:
    """The expected loss () and its gradient (4D + 2,), by differentiation through the draws."""
    loss, gradient = [], []
    for batch in zip(*(part.split(BATCH) for part in draws), strict=True):
        # A copy of the parameters for each prompt gives one gradient per prompt.
        repeated = parameters.expand(len(batch[0]), -1).clone().requires_grad_()
        batch_loss = losses(model, repeated, Normals(*batch))
        gradient.append(torch.autograd.grad(batch_loss.sum(), repeated)[0])
        loss.append(batch_loss.detach())
    return estimate(torch.cat(loss)), estimate(torch.cat(gradient))


def estimate(values: Tensor) -> Estimate:
    """The mean of values (n, ...) over the first axis, in fp64."""
    values = values.double()
    return Estimate(values.mean(0), values.std(0) / len(values) ** 0.5)


def gradients(models: list[SavedModel], n_prompts: int, n_ood_samples: int, seed: int = 0) -> dict[str, Any]:
    """The gradient of every checkpoint's expected loss at M = "inf", from the same n_prompts for all.

    Returns:
        "checkpoints": one row per checkpoint. "ridge": the row of ridge regression, the best estimator. `ood_score` has
        the same expectation as `expected_loss` and is computed from n_ood_samples other prompts.
    """
    if n_prompts < 2:
        raise UserError(f"n_prompts must be at least 2, for standard errors, not {n_prompts}")
    # The same draws for all checkpoints, so that their differences are not noise of the draws.
    task, device = models[0].config, models[0].model().device
    at, draws = prior(task).to(device), normals(task, n_prompts, seed, device)
    rows: list[dict[str, Any]] = []
    for saved in models:
        model, M, step = saved.model(), saved.config.M, saved.step
        score = {"M": M, "step": step, "ood_score": evaluate_ood_score(model, n_ood_samples, seed)}
        rows.append(score | row(model, at, draws))
        loss, error = rows[-1]["expected_loss"], rows[-1]["expected_loss_standard_error"]
        if not math.isfinite(loss):
            raise UserError(f"{saved.path} predicts {loss}: its training has failed; move it out of the folder")
        print(f"M {M:>7}  step {step:>8}  expected loss {loss:.4f} +- {error:.4f}", flush=True)
    # Ridge regression as the lower bound of the expected loss.
    best = row(lambda x, y: ridge(x, y, task.sigma2), at, draws)
    return {"task": models[0].task, "n_prompts": n_prompts, "seed": seed, "checkpoints": rows, "ridge": best}


def row(model: Predictor, parameters: Tensor, draws: Normals) -> dict[str, Any]:
    """The values of one model in gradients.json; each of PARTS is a list of D numbers or of one."""
    loss, gradient = reparameterised(model, parameters, draws)
    vectors = {"parameters": parameters, "gradients": gradient.value, "standard_errors": gradient.error}
    named = {name: {part: value.tolist() for part, value in parts(vector).items()} for name, vector in vectors.items()}
    return {"expected_loss": loss.value.item(), "expected_loss_standard_error": loss.error.item(), **named}
