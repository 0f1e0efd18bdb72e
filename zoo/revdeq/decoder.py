"""One token at a time through the equilibrium, with what earlier tokens need not have computed again.

The n-th evaluation of f at a token attends to the n-th evaluations at the tokens before it. So each evaluation keeps
its own keys and values, 2N slots a token, and what is decoded equals what is computed anew (a cache of the last states
alone does not). Where the iteration truly comes to rest all evaluations end at one state, and one slot is enough: the
model's `warm_start`.
"""

from collections.abc import Iterator
from itertools import count, repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.generation.decoders import dtype_of, evaluating
from zoo.layers import KVCache
from zoo.layers.attention import causal_mask
from zoo.revdeq.model import RevDEQ


class Decoder:
    """`model` at work on `batch` rows of at most `max_len` columns: first `prefill`, then `step` by step.

    An iteration that ends by tolerance makes other numbers of evaluations at every length, so without `warm_start` it
    is computed anew for every token; so is one by Anderson's or Broyden's method, which mix all positions. `precision`,
    fp32 or bf16, is that of the products.
    """

    def __init__(self, model: RevDEQ, batch: int, max_len: int, precision: str = "fp32") -> None:
        c = model.config
        self.model, self.low = model, dtype_of(precision) == torch.bfloat16
        self.anew = not c.warm_start and (c.fixed_point_tol is not None or c.solver in ("anderson", "broyden"))
        slots = 1 if c.warm_start else c.evaluations
        head_dim, weight = c.hidden_size // c.num_heads, model.tok_embeddings.weight
        shape = c.num_heads, 0 if self.anew else max_len, head_dim
        dtype = torch.bfloat16 if self.low else weight.dtype
        self.cache = KVCache(slots * c.num_layers, batch, *shape, dtype, weight.device)

    def prefill(self, tokens: Tensor, left_padding: Tensor | None = None) -> Tensor:
        """Logits (B, V) after prompts (B, T), of which the first `left_padding` (B,) columns are padding."""
        self.text, self.column, self.left_padding = tokens, 0, left_padding
        self.z: Tensor | None = None
        return self._read(tokens)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token in each row, tokens (B,)."""
        if self.anew:
            return self.prefill(torch.cat([self.text, tokens[:, None]], 1), self.left_padding)
        return self._read(tokens[:, None])

    @torch.no_grad()
    def _read(self, tokens: Tensor) -> Tensor:
        model, start, end = self.model, self.column, self.column + tokens.shape[1]
        slots: Iterator[int] = repeat(0) if model.config.warm_start else count(step=model.config.num_layers)
        past: dict[str, Any] = {"left_padding": self.left_padding}
        if start or self.left_padding is not None:
            past["mask"] = causal_mask(start, end, self.left_padding, tokens.device)

        def f(z: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
            cache = None if self.anew else (self.cache, next(slots), start)
            # Past what `compile` may have made of the cell: it would compile again for every length.
            return model.cell.forward(z, inputs, cache=cache, **past)

        autocast = torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.low)
        with evaluating(model), autocast:
            solution = model.solve(tokens, f, start, self.left_padding, z0=self.z)
            logits = F.linear(model.norm(solution.z[:, -1]), model.output_weight)  # (B, V)
        self.column = end
        if model.config.warm_start:
            self.z = solution.z[:, -1:]  # (B, 1, d)
        return logits.float()
