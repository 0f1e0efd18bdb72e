"""Low-rank adaptation (LoRA): W + (alpha / r) B A, with W frozen and B, A trained.

Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3. A is initialized as `nn.Linear` initializes its weight and
B with zeros, so that an adapted model starts with the outputs of the original one.
"""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from zoo.errors import UserError, check_counts


class LowRank(nn.Module):
    """A parametrization that adds (alpha / r) B A to a matrix (out, in).

    Args:
        weight: the matrix; its shape, type and device are used.
        rank: r, the rank of the update.
        alpha: the update is multiplied by alpha / rank.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        out_features, in_features = weight.shape
        self.a = nn.Parameter(torch.empty(rank, in_features, device=weight.device, dtype=weight.dtype))
        self.b = nn.Parameter(torch.zeros(out_features, rank, device=weight.device, dtype=weight.dtype))
        self.scale = alpha / rank
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * (self.b @ self.a)  # (out, in)


def add_lora(model: nn.Module, rank: int, alpha: float, targets: Collection[str] | None = None) -> None:
    """Freeze `model` and add a trained low-rank update to its weight matrices.

    Args:
        model: changed in place.
        rank: rank of each update, at least 1.
        alpha: each update is multiplied by alpha / rank.
        targets: names of the modules to adapt, each the last part of a module's full name; None: all modules with a
            matrix, except embeddings.

    Raises:
        UserError: the rank is below 1, the model is adapted already, or a target matches no module.
    """
    check_counts(lora_rank=rank)
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise UserError("the model has low-rank updates already: set lora_rank in one place only")
    # All matrices outside embeddings: (last part of the module's name, module, name of the matrix in it).
    matrices = [
        (path.rpartition(".")[2], module, name)
        for path, module in model.named_modules()
        if not isinstance(module, nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 2
    ]
    # Every target must match at least one module.
    available = {module_name for module_name, _, _ in matrices}
    unknown = [] if targets is None else sorted({*targets} - available)
    if unknown:
        raise UserError(f"lora_targets names no {unknown[0]!r} of this model, which has {', '.join(sorted(available))}")
    # Freeze the weights W; the parametrizations that are registered next bring the trained A and B.
    model.requires_grad_(False)
    for module_name, module, name in matrices:
        if targets is None or module_name in targets:
            _register(module, name, LowRank(getattr(module, name), rank, alpha))


def _register(module: nn.Module, name: str, update: LowRank) -> None:
    parametrize.register_parametrization(module, name, update)
    # torch has replaced the module's class by a new one, which pickle, as used by ddp_spawn, cannot import.
    type(module).__reduce__ = _reduce  # type: ignore[assignment]


def _reduce(module: nn.Module) -> tuple[Any, ...]:
    """Values that pickle stores for an adapted module: its original class, attributes, and (name, matrix, update)."""
    lists: Any = module.parametrizations
    attributes = vars(module) | {"_modules": {k: m for k, m in module._modules.items() if m is not lists}}
    return _rebuild, (type(module).__bases__[0], attributes, [(k, own.original, own[0]) for k, own in lists.items()])


def _rebuild(
    cls: type[nn.Module], attributes: dict[str, Any], matrices: list[tuple[str, Tensor, LowRank]]
) -> nn.Module:
    """The module that `_reduce` has described."""
    module = cls.__new__(cls)
    vars(module).update(attributes)
    for name, matrix, update in matrices:
        module.register_parameter(name, matrix)  # type: ignore[arg-type]
        _register(module, name, update)
    return module


def merge_lora(model: nn.Module) -> None:
    """Add the updates to the weights and remove them; the model then has its original structure and is trainable."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    model.requires_grad_(True)
