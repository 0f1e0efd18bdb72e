"""Evaluation of f at a state, and its vector-Jacobian products, for backward passes that are written by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

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
        if not isinstance(value, Tensor):
            raise UserError(f"f must return a tensor, not a {type(value).__name__}")
        if value.shape != state.shape:
            raise UserError(
                f"f must return the shape of its state: it returned {tuple(value.shape)} for {tuple(state.shape)}"
            )
        return value.to(dtype)

    return evaluate


class BoundModule:
    """A module called with parameters and buffers passed as arguments: (z, inputs, tensors) -> f(z, x).

    A backward pass that calls f again needs the tensors of the forward pass, which `torch.func.functional_call` may
    have replaced for that time only. Copies of the parameters keep the hooks on them from running at every evaluation.
    Each call runs in the modes (`train()` or `eval()`) of the time of construction.

    Args:
        f: the module.
        takes_tuple: whether its second argument is the tuple of all inputs, or its first input alone.

    Attributes:
        tensors: the parameters and buffers that the module has at the time of construction, each once.
        reassigned: names of the parameters and buffers to which a call has assigned another tensor; the module
            itself has its own tensors again after each call.
    """

    def __init__(self, f: nn.Module, takes_tuple: bool) -> None:
        self.f, self.takes_tuple = f, takes_tuple
        # Each tensor of each module by one name: functional_call would replace the tensor of a module that is
        # registered under two names twice, and then take the replacement for the original.
        modules = dict(f.named_modules())
        self.modes = [(module, module.training) for module in modules.values()]
        slots: dict[str, Tensor] = {}
        for prefix, module in modules.items():
            for members in (module.named_parameters, module.named_buffers):
                for name, tensor in members(prefix, recurse=False, remove_duplicate=False):
                    slots[name] = tensor
        # Tied tensors are one leaf.
        unique = {id(tensor): tensor for tensor in slots.values()}
        positions = {key: i for i, key in enumerate(unique)}
        self.tensors = tuple(unique.values())
        self.names = {name: positions[id(tensor)] for name, tensor in slots.items()}
        self.reassigned: set[str] = set()

    def __call__(self, z: Tensor, inputs: tuple[Tensor, ...], tensors: Sequence[Tensor]) -> Tensor:
        named = {name: tensors[i] for name, i in self.names.items()}
        changed = [(module, module.training) for module, mode in self.modes if module.training != mode]
        try:
            for module, mode in changed:
                module.training = not mode
            value = functional_call(
                self.f, named, (z, inputs if self.takes_tuple else inputs[0]), tie_weights=False, strict=False
            )
        finally:
            for module, mode in changed:
                module.training = mode
        # functional_call stores the tensors that f has at the end of the call in `named`.
        self.reassigned.update(name for name, i in self.names.items() if named[name] is not tensors[i])
        return value


class Differentiable:
    """f(., inputs) with vector-Jacobian products.

    The products with inputs, parameters and buffers are summed over all calls in `gradients`, a list with one entry for
    each of `leaves`; None if nothing was added.

    Args:
        f: the module.
        n: number of inputs.
        leaves: n inputs, then the module's parameters and buffers; gradients go to those that require them.
        autocast: autocast state in which f is evaluated.
        dtype: dtype of states and values.
    """

    def __init__(
        self, f: BoundModule, n: int, leaves: Sequence[Tensor], autocast: SavedAutocast, dtype: torch.dtype
    ) -> None:
        # Detached tensors are leaves of the graph of one evaluation, so that its gradients stop there. Hooks on the
        # original ones run once, for the sum that the caller returns.
        self.leaves = tuple(t.detach().requires_grad_(t.requires_grad) for t in leaves)
        self.gradients: list[Tensor | None] = [None] * len(leaves)
        self.is_checked = False
        tensors = self.leaves[n:]
        self.evaluate = make_evaluate(lambda z, inputs: f(z, inputs, tensors), self.leaves[:n], autocast, dtype)

    def record(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate f with autograd: (the state as a leaf in f's dtype, f of it), the arguments of `vjp`.

        Raises:
            UserError: f depends on a tensor that needs gradients and is not an input, parameter or buffer of f.
        """
        with torch.enable_grad():
            leaf = state.detach().to(self.leaves[0].dtype).requires_grad_()
            value = self.evaluate(leaf)
        if not self.is_checked:  # the first evaluation shows it
            refuse_other_leaves(value, (leaf, *self.leaves))
            self.is_checked = True
        return leaf, value

    def value(self, state: Tensor) -> Tensor:
        """f of the state, computed exactly as in `record`.

        Without gradients torch may choose other kernels with other rounding, which the inverse iteration would amplify.
        """
        return self.record(state)[1].detach()

    def vjp(self, leaf: Tensor, value: Tensor, cotangent: Tensor) -> Tensor:
        """cotangent * df/dstate; adds cotangent * df/dinputs and * df/dparameters to `gradients`."""
        if not value.requires_grad:  # f is constant
            return torch.zeros_like(cotangent)
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


def refuse_other_leaves(value: Tensor, leaves: Sequence[Tensor]) -> None:
    """Raises UserError if `value` depends on a leaf of autograd's graph that is not one of `leaves`.

    The gradient of such a tensor would be lost, because the caller returns those of `leaves` only.
    """
    known = {id(leaf) for leaf in leaves}
    nodes: list[Any] = [value.grad_fn]
    visited = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if "AccumulateGrad" in node.name() and id(node.variable) not in known:
            raise UserError(
                f"f uses a tensor of shape {tuple(node.variable.shape)} that needs a gradient and is neither its "
                "parameter nor in x: pass it in x, register it as a parameter, or set backward=unroll"
            )
        nodes.extend(function for function, _ in node.next_functions)
