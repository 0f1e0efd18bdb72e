"""Decoding with a key-value cache: one token at a time through the fixed-point iteration.

The n-th evaluation of f at a token attends to the n-th evaluations at the tokens before it. So each evaluation keeps
its own keys and values, 2N slots per token, and cached decoding is exact; a cache of the final states alone is not.
Where the iteration converges, all evaluations end at the same state, and one slot per token is enough: `warm_start`.
"""

from collections.abc import Iterator
from itertools import count, repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.errors import UserError, check_choice
from zoo.generation.decoders import evaluating
from zoo.layers import KVCache
from zoo.layers.attention import causal_mask


class Decoder:
    """Decoder of a `RevDEQ` for a fixed number of rows: first `prefill`, then `step` for each token.

    With two kinds of iteration no cache is exact and each token evaluates the whole text: one that ends by tolerance
    (without `warm_start`), because its number of evaluations changes with the text; and Anderson's and Broyden's
    methods, which mix all positions.

    Args:
        model: a `RevDEQ`; the type would make an import cycle.
        batch: number of rows B.
        max_len: number of columns at most, prompt included.
        precision: dtype of the matrix products, "fp32" or "bf16".
    """

    def __init__(self, model: Any, batch: int, max_len: int, precision: str = "fp32") -> None:
        c = model.config
        if precision == "int8":
            raise UserError("RevDEQ decodes in fp32 or bf16, not in int8, which a Llama does: set --precision to bf16")
        check_choice("precision", precision, ("fp32", "bf16"))
        self.model, self.bf16 = model, precision == "bf16"
        # Where no cache is exact, the cache stays empty and every token evaluates the whole text.
        self.uncached = c.couples_positions and not c.warm_start
        # One slot for each evaluation of f at a token, or a single one for its converged state.
        slots = 1 if c.warm_start else c.evaluations
        head_dim, weight = c.hidden_size // c.num_heads, model.tok_embeddings.weight
        shape = c.num_heads, 0 if self.uncached else max_len, head_dim
        dtype = torch.bfloat16 if self.bf16 else weight.dtype
        self.cache = KVCache(slots * c.num_layers, batch, *shape, dtype, weight.device)

    def prefill(self, tokens: Tensor, left_padding: Tensor | None = None) -> Tensor:
        """Logits (B, V) after prompts (B, T), of which the first `left_padding` (B,) columns are padding."""
        self.text, self.column, self.left_padding = tokens, 0, left_padding
        self.z: Tensor | None = None  # (B, 1, d), with warm_start the last token's state
        return self._read(tokens)

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token in each row, tokens (B,)."""
        if self.uncached:
            return self.prefill(torch.cat([self.text, tokens[:, None]], 1), self.left_padding)
        return self._read(tokens[:, None])

    @torch.no_grad()
    def _read(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after tokens (B, T) at the next T columns."""
        model, start, end = self.model, self.column, self.column + tokens.shape[1]
        # The first layer's slot of each evaluation in turn.
        slots: Iterator[int] = repeat(0) if model.config.warm_start else count(step=model.config.num_layers)
        # Attention is plainly causal unless there are earlier columns or padding.
        attention: dict[str, Any] = {"left_padding": self.left_padding}
        if start or self.left_padding is not None:
            attention["mask"] = causal_mask(start, end, self.left_padding, tokens.device)
        # The state of padding stays 0, so that it is not part of residuals and of the solvers' inner products.
        padding = None
        if self.left_padding is not None and start == 0:
            padding = torch.arange(end, device=tokens.device) < self.left_padding[:, None]  # (B, T)
        last_inputs: tuple[Tensor, ...] = ()

        def f(z: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
            nonlocal last_inputs
            last_inputs = inputs
            cache = None if self.uncached else (self.cache, next(slots), start)
            # Not through a compiled cell: it would be compiled again for every length.
            return model.cell.forward(z, inputs, cache=cache, **attention)

        # Iterate the new columns only, from the last token's state with warm_start, and predict from the last column.
        autocast = torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.bf16)
        with evaluating(model), autocast:
            solution = model.solve(tokens, f, start, self.left_padding, padding, z0=self.z)
            if model.config.warm_start and model.config.solver != "reversible":
                # These solvers go on while another row does: the cache receives the keys and values of the result.
                f(solution.z, last_inputs)
            logits = F.linear(model.norm(solution.z[:, -1]), model.output_weight)  # (B, V)
        self.column = end
        if model.config.warm_start:
            self.z = solution.z[:, -1:]  # (B, 1, d)
        return logits.float()
