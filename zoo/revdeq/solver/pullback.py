"""f at a state and its vector-Jacobian products, for backward passes that are written by hand."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zoo.revdeq.solver.iteration import Autocast, Function, evaluator


class Pullback:
    """f of states of `dtype`, and its products; those with inputs and parameters add up in `gradients`."""

    def __init__(
        self,
        f: Function,
        inputs: Sequence[Tensor],
        parameters: Sequence[Tensor],
        autocast: Autocast,
        dtype: torch.dtype,
    ) -> None:
        detached = tuple(t.detach().requires_grad_(t.requires_grad) for t in inputs)
        self.evaluate = evaluator(f, detached, autocast, dtype)
        self.leaves = (*detached, *parameters)
        self.gradients: list[Tensor | None] = [None] * len(self.leaves)

    def at(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """The state as a leaf in f's dtype, and f of it, from which `pull` goes back."""
        with torch.enable_grad():
            leaf = state.detach().to(self.leaves[0].dtype).requires_grad_()
            return leaf, self.evaluate(leaf)

    def value(self, state: Tensor) -> Tensor:
        """f of the state alone, by the very kernels of `at`: without gradients torch may choose others, of other
        rounding, and the inverse would magnify the difference."""
        return self.at(state)[1].detach()

    def pull(self, leaf: Tensor, value: Tensor, cotangent: Tensor) -> Tensor:
        """cotangent * df/dstate; cotangent * df/dinputs and * df/dparameters go to `gradients`."""
        wanted = [i for i, of in enumerate(self.leaves) if of.requires_grad]
        of_state, *of_leaves = torch.autograd.grad(
            value, [leaf, *(self.leaves[i] for i in wanted)], cotangent, allow_unused=True
        )
        for i, gradient in zip(wanted, of_leaves, strict=True):
            if gradient is not None:
                before = self.gradients[i]
                self.gradients[i] = gradient if before is None else before + gradient
        return torch.zeros_like(cotangent) if of_state is None else of_state.to(cotangent.dtype)
