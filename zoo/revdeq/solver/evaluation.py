"""Evaluation of f at a state, and its vector-Jacobian products, for backward passes that are written by hand."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zoo.errors import UserError

Function = Callable[[Tensor, tuple[Tensor, ...]], Tensor]  # f(z, inputs)
Evaluate = Callable[[Tensor], Tensor]  # a state -> f of it, in the state's dtype


class SavedAutocast:
    """The autocast state at the time of construction, as a context manager for later: backward passes run without it.

    Calling the object gives a new context. The cache of weights is off: it would sum the gradients of all evaluations
    in 16 bits.

    Args:
        device: type of the device, such as "cpu".
    """

    def __init__(self, device: str) -> None:
        self.device, self.enabled = device, torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device)

    def __call__(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, self.enabled, cache_enabled=False)


def make_evaluate(f: Function, inputs: tuple[Tensor, ...], autocast: SavedAutocast, dtype: torch.dtype) -> Evaluate:
    """The function state -> f(state, inputs). f computes in the first input's dtype; the result is cast to `dtype`."""

    def evaluate(state: Tensor) -> Tensor:
        with autocast():
            value = f(state.to(inputs[0].dtype), inputs)
        if value.shape != state.shape:
            raise UserError(
                f"f must return the shape of its state: it returned {tuple(value.shape)} for {tuple(state.shape)}"
            )
        return value.to(dtype)

    return evaluate


class Differentiable:
    """f(., inputs) with vector-Jacobian products.

    The products with inputs and parameters are summed over all calls in `gradients`, a list with one entry for each
    input, then for each parameter; None where nothing was added.

    Args:
        f: called f(state, inputs).
        inputs: second argument of f; gradients go to those that require them.
        parameters: parameters of f that receive gradients.
        autocast: autocast state in which f is evaluated.
        dtype: of states and values.
    """

    def __init__(
        self,
        f: Function,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        autocast: SavedAutocast,
        dtype: torch.dtype,
    ) -> None:
        # Detached inputs are leaves of the graph of one evaluation, so that its gradients stop there.
        detached = tuple(t.detach().requires_grad_(t.requires_grad) for t in inputs)
        self.evaluate = make_evaluate(f, detached, autocast, dtype)
        self.leaves = (*detached, *parameters)
        self.gradients: list[Tensor | None] = [None] * len(self.leaves)

    def record(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate f with autograd: (the state as a leaf in f's dtype, f of it), the arguments of `vjp`."""
        with torch.enable_grad():
            leaf = state.detach().to(self.leaves[0].dtype).requires_grad_()
            return leaf, self.evaluate(leaf)

    def value(self, state: Tensor) -> Tensor:
        """f of the state, computed exactly as in `record`.

        Without gradients torch may choose other kernels with other rounding, which the inverse iteration would amplify.
        """
        return self.record(state)[1].detach()

    def vjp(self, leaf: Tensor, value: Tensor, cotangent: Tensor) -> Tensor:
        """cotangent * df/dstate; adds cotangent * df/dinputs and * df/dparameters to `gradients`."""
        # One backward pass through a single evaluation gives the products with the state and all leaves.
        required = [i for i, tensor in enumerate(self.leaves) if tensor.requires_grad]
        state_grad, *leaf_grads = torch.autograd.grad(
            value, [leaf, *(self.leaves[i] for i in required)], cotangent, allow_unused=True
        )
        # All evaluations share inputs and parameters: their gradients add up.
        for i, gradient in zip(required, leaf_grads, strict=True):
            if gradient is not None:
                total = self.gradients[i]
                self.gradients[i] = gradient if total is None else total + gradient
        return torch.zeros_like(cotangent) if state_grad is None else state_grad.to(cotangent.dtype)
