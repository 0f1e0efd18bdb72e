"""Low-rank adaptation (Hu et al. 2021, 2106.09685): W + (alpha / r) B A, with W frozen and B, A trained.

A is drawn as `nn.Linear` draws its weight, B starts at zero, so that an adapted model starts as the one it adapts.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zoo.errors import UserError


class LowRank(nn.Module):
    """Adds (alpha / r) B A to a matrix (out, in)."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        out, into = weight.shape
        self.a = nn.Parameter(torch.empty(rank, into, device=weight.device))
        self.b = nn.Parameter(torch.zeros(out, rank, device=weight.device))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a)  # (out, in)


def add_lora(model: nn.Module, rank: int, alpha: float, targets: Collection[str] | None = None) -> None:
    """Freeze `model` and put a trained low-rank update on weight matrices of it.

    Args:
        model: adapted in place.
        rank, alpha: of each update.
        targets: the modules whose matrices are adapted, by the last part of their names; by default all that are no
            embeddings.

    Raises:
        ValueError: the rank is not positive, the model has such updates already, or no module has a target's name.
    """
    if rank < 1:
        raise UserError(f"lora_rank must be at least 1, not {rank}")
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise UserError("the model has low-rank updates already: drop one of the two lora_rank")
    found = [
        (path.rpartition(".")[2], module, name)
        for path, module in model.named_modules()
        if not isinstance(module, nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 2
    ]
    known = {last for last, _, _ in found}
    if strange := sorted({*targets} - known) if targets is not None else []:
        raise UserError(f"lora_targets names no {strange[0]!r} of this model, which has {', '.join(sorted(known))}")
    model.requires_grad_(False)
    matrices = [(module, name) for last, module, name in found if targets is None or last in targets]
    for module, name in matrices:
        parametrize.register_parametrization(module, name, LowRank(getattr(module, name), rank, alpha))


def merge_lora(model: nn.Module) -> None:
    """Put the updates into the weights: the model is then as if it had never been adapted, and trains as a whole."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    model.requires_grad_(True)
