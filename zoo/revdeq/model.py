"""RevDEQ: a reversible deep equilibrium language model, one block applied until its output is (nearly) its own input.

McCallum et al. 2025, https://arxiv.org/abs/2509.12917; JAX original: https://github.com/sammccallum/reversible-deq.
Token and position embeddings are the input x, the solver iterates z = f(z, x), and a norm and a linear map predict the
next token from z. Departures from the original:
- the norm before the output layer is applied (the original creates one and does not use it);
- queries, keys and values come from one linear map each instead of two; attention is without biases;
- dropout, rotary positions and tied embeddings exist as options, the vocabulary is not padded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, repeat
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError, check_choice, check_counts, check_probability
from zoo.layers import Attention, KVCache, RotaryEmbedding
from zoo.layers.linear import Linear
from zoo.layers.linear_nll import IGNORED, linear_nll
from zoo.revdeq.solver import Backward, Solution, Solver, check_settings, solve

if TYPE_CHECKING:
    from zoo.revdeq.decoder import Decoder

Positions = Literal["learned", "rotary"]
Block = Literal["paper", "post_norm"]
CacheSlot = tuple[KVCache, int, int]  # the cache, the first layer's slot in it, the column of z's first token


@dataclass
class RevDEQConfig:
    """Sizes of the network and settings of its iteration; the defaults are the paper's for WikiText-103, 94M
    parameters.

    Args:
        vocab_size: number of token ids.
        hidden_size: width of the state, a multiple of num_heads.
        num_heads: attention heads, a divisor of hidden_size.
        intermediate_size: width inside each MLP, at least 1.
        mlp_layers: number of hidden layers inside each MLP, at least 1, each of width intermediate_size.
        num_layers: number of blocks in one evaluation of f, at least 1.
        max_position_embeddings: longest context in tokens, at least 1.
        positions: "learned" position embeddings, added to the tokens, or "rotary" embedding in attention.
        block: "paper", a pre-norm block whose iteration does not converge and is truncated after N steps; or
            "post_norm", which normalizes after each branch and converges with more steps (measured, not proven).
        num_fixed_point_iterations: N, steps of the iteration, at least 1; each evaluates f twice.
        fixed_point_tol: stop iterating a sequence where its relative residual is at most this, greater than 0. Later
            tokens then influence earlier ones. null: always N steps.
        beta: share of f in every half-step, in (0, 2), not 1.
        backward: gradient method. reversible: exact, memory does not grow with N. unroll: ordinary backpropagation.
            checkpoint: the same gradients as unroll, saving only the states of each step. implicit, phantom:
            approximate unless the iteration has converged.
        keep_every: with backward=reversible, save the state every keep_every steps, so that at most keep_every steps
            are inverted in one go; for many steps, or beta far from 0.5. null: save the start only.
        solver: with backward=implicit or phantom: reversible, plain (damped iteration), anderson or broyden.
        warm_start: in generation, start each token from the state of the token before, and cache converged states only.
            Needs block=post_norm and fixed_point_tol, which sets the accuracy.
        tie_embeddings: use the token embedding as output matrix.
        dropout: probability, in [0, 1), on the embeddings and on both branches of a block; one mask for all evaluations
            of a forward pass.

    Raises:
        UserError: a setting is outside its range, or cannot be combined with another one.
    """

    vocab_size: int = 50257
    hidden_size: int = 768
    num_heads: int = 12
    intermediate_size: int = 3072
    mlp_layers: int = 2
    num_layers: int = 1
    max_position_embeddings: int = 448
    positions: Positions = "learned"
    block: Block = "paper"
    num_fixed_point_iterations: int = 4
    fixed_point_tol: float | None = None
    beta: float = 0.5
    backward: Backward = "reversible"
    keep_every: int | None = None
    solver: Solver = "reversible"
    warm_start: bool = False
    tie_embeddings: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        # Sizes are at least 1, and names are among those that exist.
        sizes = ("vocab_size", "hidden_size", "num_heads", "intermediate_size", "mlp_layers", "num_layers")
        limits = ("max_position_embeddings", "num_fixed_point_iterations")
        check_counts(**{name: getattr(self, name) for name in (*sizes, *limits)})
        check_choice("positions", self.positions, get_args(Positions))
        check_choice("block", self.block, get_args(Block))
        if self.hidden_size % self.num_heads:
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        head_dim = self.hidden_size // self.num_heads
        if self.positions == "rotary" and head_dim % 2:
            raise UserError(f"positions=rotary rotates pairs: hidden_size / num_heads must be even, not {head_dim}")
        check_probability("dropout", self.dropout)
        if self.warm_start and self.fixed_point_tol is None:
            raise UserError("warm_start needs a fixed_point_tol, at which the iteration of a token ends")
        if self.warm_start and self.block == "paper":
            raise UserError("warm_start needs a block whose iteration converges: set block=post_norm")
        check_settings(self.beta, self.fixed_point_tol, self.backward, self.solver, self.keep_every)

    @property
    def max_seq_len(self) -> int:
        """Longest context in tokens: max_position_embeddings under the name that all language models share."""
        return self.max_position_embeddings

    @property
    def evaluations(self) -> int:
        """Number of evaluations of the cell in a forward pass without a tolerance."""
        return self.num_fixed_point_iterations * (2 if self.solver == "reversible" else 1)

    @property
    def couples_positions(self) -> bool:
        """Whether a position also depends on later ones: through a tolerance, or the mixing of states by the solver."""
        return self.fixed_point_tol is not None or self.solver in ("anderson", "broyden")


class Layer(nn.Module):
    """A transformer block on the state z (B, T, d), into which the input x (B, T, d) is injected."""

    def __init__(self, config: RevDEQConfig) -> None:
        super().__init__()
        d = config.hidden_size
        widths = chain([d], repeat(config.intermediate_size, config.mlp_layers), [d])
        self.post_norm, self.keep_probability = config.block == "post_norm", 1 - config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = Attention(d, config.num_heads, config.num_heads)
        self.mlp = nn.ModuleList(Linear(n, m) for n, m in pairwise(widths))

    def feed_forward(self, h: Tensor) -> Tensor:
        """The MLP with GELU between its layers, (B, T, d) -> (B, T, d)."""
        *hidden, last = self.mlp
        for linear in hidden:
            h = F.gelu(linear(h), approximate="tanh")  # (B, T, inner)
        return last(h)

    def forward(
        self, z: Tensor, x: Tensor, rotary: RotaryEmbedding | None, masks: Sequence[Tensor | None], **attention: Any
    ) -> Tensor:
        """z (B, T, d) -> (B, T, d).

        Args:
            z: the state.
            x: the input.
            rotary: rotary embedding of queries and keys; None: none.
            masks: dropout masks (B, T, d) after attention and after the MLP; None: no dropout.
            **attention: further arguments of `Attention.forward`.
        """
        # x is injected before attention, so that the fixed point depends on the tokens.
        mask1, mask2 = masks
        if self.post_norm:
            h = z + x
            h = self.norm1(h + self.drop(self.attention(h, rotary, **attention), mask1))
            return self.norm2(h + self.drop(self.feed_forward(h), mask2))
        # The paper's block: pre-norm, and x only reaches the attention branch.
        z = z + self.drop(self.attention(self.norm1(z + x), rotary, **attention), mask1)
        return z + self.drop(self.feed_forward(self.norm2(z)), mask2)

    def drop(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """Dropout of h (B, T, d) with a given mask."""
        return h if mask is None else h * mask / self.keep_probability


class Cell(nn.Module):
    """The iterated function f: all layers in sequence.

    Its inputs are x (B, T, d); two dropout masks for each layer, or none; and perhaps (B, T, 1) True at padding, where
    the value is 0.
    """

    def __init__(self, config: RevDEQConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.rotary = None
        if config.positions == "rotary":
            self.rotary = RotaryEmbedding(config.hidden_size // config.num_heads, config.max_position_embeddings)

    def forward(
        self, z: Tensor, inputs: tuple[Tensor, ...], cache: CacheSlot | None = None, **attention: Any
    ) -> Tensor:
        """z (B, T, d) -> f(z) (B, T, d); `attention` are further arguments of `Attention.forward`."""
        # Each layer receives x, its own slot of the cache and its own pair of dropout masks.
        x, *masks = inputs
        padding = masks.pop() if len(masks) % 2 else None  # the last one of an odd number
        for number, layer in enumerate(self.layers):
            if cache is not None:
                kv_cache, first_slot, start = cache
                attention["cache"] = kv_cache, first_slot + number, start
            z = layer(z, x, self.rotary, masks[2 * number : 2 * number + 2] or (None, None), **attention)
        return z if padding is None else z.masked_fill(padding, 0)


class RevDEQ(nn.Module):
    """Reversible deep equilibrium language model: tokens (B, T) -> logits (B, T, V) of each next token.

    Args:
        config: sizes and settings.
    """

    slides = True  # generation continues beyond the context from its last half

    def __init__(self, config: RevDEQConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_size
        # The parts: the input x, the iterated cell, and the output layer.
        self.tok_embeddings = nn.Embedding(config.vocab_size, d)
        if config.positions == "learned":
            self.pos_embeddings = nn.Embedding(config.max_position_embeddings, d)
        self.cell = Cell(config)
        self.norm = nn.LayerNorm(d)
        if not config.tie_embeddings:
            self.output = nn.Linear(d, config.vocab_size, bias=False)
        # Torch's default initialization is also the original's: N(0, 1) for embeddings, U(+-1 / sqrt(n)) for matrices.
        # The injected x must not be small: the norm of z + x would amplify changes of z, and the inverse would lose
        # digits.
        self.scale = 1.0
        if config.tie_embeddings:
            self.scale = math.sqrt(d)
            nn.init.normal_(self.tok_embeddings.weight, std=1 / self.scale)

    @property
    def output_weight(self) -> Tensor:
        """The matrix (V, d) from hidden states to logits."""
        return self.tok_embeddings.weight if self.config.tie_embeddings else self.output.weight

    def solve(
        self,
        tokens: Tensor,
        f: Any = None,
        start: int = 0,
        left_padding: Tensor | None = None,
        padding: Tensor | None = None,
        **settings: Any,
    ) -> Solution:
        """Embed tokens (B, T) and iterate the cell; the solution's z is (B, T, d).

        Args:
            tokens: token ids.
            f: function to iterate in place of the cell; None: the cell.
            start: position of the first column.
            left_padding: (B,) number of padding columns on the left of each row, which positions do not count.
            padding: (B, T) True where the state stays 0, so that residuals and solvers do not depend on it.
            **settings: settings of `zoo.revdeq.solve` that replace those of the config.
        """
        # All columns need a position.
        c, end = self.config, start + tokens.shape[1]
        if end > c.max_position_embeddings:
            raise UserError(f"{end} tokens are more than the model's context of {c.max_position_embeddings}")
        # The input: token and position embeddings.
        x = self.scale * self.tok_embeddings(tokens)  # (B, T, d)
        if c.positions == "learned":
            at = torch.arange(start, end, device=tokens.device)
            x = x + self.pos_embeddings(at if left_padding is None else (at - left_padding[:, None]).clamp(min=0))
        # Dropout masks are part of the input, so that every evaluation of the cell uses the same ones.
        masks: list[Tensor] = []
        if self.training and c.dropout:
            x = F.dropout(x, c.dropout)
            masks = [torch.rand_like(x, dtype=torch.float32) >= c.dropout for _ in range(2 * c.num_layers)]
        if padding is not None:
            masks.append(padding[..., None])
        # Iterate z = f(z, x), with the config's settings unless the caller replaces them.
        config_settings: dict[str, Any] = {
            "beta": c.beta, "max_steps": c.num_fixed_point_iterations, "tol": c.fixed_point_tol,
            "backward": c.backward, "keep_every": c.keep_every, "solver": c.solver,
        }  # fmt: skip
        return solve(self.cell if f is None else f, (x, *masks), **{**config_settings, **settings})

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) and hidden states after the final norm (B, T, d) of tokens (B, T).

        Args:
            tokens: token ids.
            targets: (B, T) if given: the columns after the last target that is not -100 count as padding.
        """
        hidden = self.norm(self.solve(tokens, padding=self._padding(targets)).z)
        return F.linear(hidden, self.output_weight), hidden

    def _padding(self, targets: Tensor | None) -> Tensor | None:
        """(B, T) True after the last scored of targets (B, T); None where no scored position depends on later ones."""
        if targets is None or not self.config.couples_positions:
            return None
        return (targets != IGNORED).flip(1).cumsum(1).flip(1) == 0

    def loss(self, tokens: Tensor, targets: Tensor, solution: Solution | None = None) -> Tensor:
        """Mean negative log-likelihood in nats of targets (B, T) given tokens (B, T); targets of -100 do not count.

        `solution` is that of `solve(tokens)`, where it is known already.
        """
        return self.solution_and_loss(tokens, targets, solution)[1]

    def solution_and_loss(
        self, tokens: Tensor, targets: Tensor, solution: Solution | None = None
    ) -> tuple[Solution, Tensor]:
        """The result of `solve(tokens)` together with the loss; arguments as for `loss`."""
        solution = solution or self.solve(tokens, padding=self._padding(targets))
        hidden = self.norm(solution.z)  # (B, T, d)
        return solution, linear_nll(hidden.flatten(0, 1), self.output_weight, targets.flatten())

    def generate(self, tokens: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
        """Continue tokens (B, T) by up to max_new_tokens: (B, T + n). Options as in `zoo.generation.sampling`."""
        from zoo.generation.sampling import generate

        return generate(self, tokens, max_new_tokens, **options)

    def decoder(self, batch_size: int, max_len: int, precision: str = "fp32", compile: bool = False) -> "Decoder":
        """A decoder with a key-value cache for `batch_size` rows of at most `max_len` tokens."""
        from zoo.revdeq.decoder import Decoder

        if compile:
            raise UserError("RevDEQ decodes without compilation: drop --compile")
        return Decoder(self, batch_size, max_len, precision)

    def flops_per_token(self, seq_len: int) -> int:
        """Floating-point operations of training on one token, forward and backward, without recomputation.

        6 for each weight of the output layer and, at each evaluation, of the cell; plus attention, causal mask ignored.
        """
        # Each evaluation of the cell costs its weights and its attention.
        c = self.config
        cell = sum(p.numel() for p in self.cell.parameters())
        attention = 12 * c.num_layers * c.hidden_size * seq_len
        return c.evaluations * (6 * cell + attention) + 6 * self.output_weight.numel()
