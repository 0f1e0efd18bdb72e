"""A language model whose depth is an iteration: one block, applied until its output is (nearly) its own input.

Reversible deep equilibrium models, McCallum et al. 2025, https://arxiv.org/abs/2509.12917; the JAX original is
https://github.com/sammccallum/reversible-deq. Token and position embeddings are the input x, the iteration of solver.py
finds z ~ f(z, x), and a norm and a linear map read the next token off z. Departures from the original:
- the norm before the head is applied (the original makes one and leaves it out);
- queries, keys and values come from one linear map each, not two in a row; attention has no biases;
- dropout, rotary positions and tied embeddings exist as options, the vocabulary is not padded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.layers import Attention, KVCache, RotaryEmbedding
from zoo.layers.linear import Linear
from zoo.layers.linear_nll import linear_nll
from zoo.revdeq.solver.solve import Backward, Solution, Solver, check, solve

if TYPE_CHECKING:
    from zoo.revdeq.decoder import Decoder

Positions = Literal["learned", "rotary"]
Block = Literal["paper", "post_norm"]
Past = tuple[KVCache, int, int]  # keys and values, the first layer's slot in it, the column where z begins


@dataclass
class RevDEQConfig:
    """Sizes of the network and of its iteration; the defaults are the paper's for WikiText-103, 94M parameters.

    Args:
        vocab_size: tokens.
        hidden_size: width of the state.
        num_heads: attention heads; they divide hidden_size.
        intermediate_size: width inside each MLP.
        mlp_layers: layers of that width inside each MLP.
        num_layers: blocks that make up one evaluation of f.
        max_position_embeddings: the longest context.
        positions: "learned", added to the tokens, or "rotary", inside attention.
        block: "paper" is a pre-norm block, whose iteration is cut off after N steps, well before it rests;
            "post_norm" normalizes after each branch, and more steps bring it to rest (measured, not proven: the card).
        num_fixed_point_iterations: N, the steps; each evaluates f twice.
        fixed_point_tol: end a sequence's iteration earlier where its relative residual is at most this. What comes
            later in a sequence then changes what comes before; None makes all N steps.
        beta: share of f in every half-step, in (0, 2), not 1.
        backward: how gradients are had: reversible, unroll, checkpoint, implicit or phantom (see solver.py).
        keep_every: reversible: keep the states of every so many steps, where N or beta would lose the way back.
        solver: for implicit and phantom: reversible, plain, anderson or broyden.
        warm_start: generation begins each token at the state of the one before, and keeps the states at rest only;
            for the post_norm block, and as exact as its fixed_point_tol.
        tie_embeddings: the head is the embedding.
        dropout: on the embeddings and both branches of a block; one mask for all evaluations of a pass.
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
        sizes = ("vocab_size", "hidden_size", "num_heads", "intermediate_size", "mlp_layers", "num_layers")
        for name in (*sizes, "max_position_embeddings", "num_fixed_point_iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name, value, known in (("positions", self.positions, Positions), ("block", self.block, Block)):
            if value not in get_args(known):
                raise UserError(f"{name} is one of {', '.join(get_args(known))}, not {value!r}")
        if self.hidden_size % self.num_heads:
            raise UserError(f"hidden_size {self.hidden_size} does not divide into num_heads {self.num_heads}")
        head_dim = self.hidden_size // self.num_heads
        if self.positions == "rotary" and head_dim % 2:
            raise UserError(f"rotary positions turn pairs: hidden_size / num_heads must be even, not {head_dim}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must lie in [0, 1), not {self.dropout}")
        if self.warm_start and self.fixed_point_tol is None:
            raise UserError("warm_start needs a fixed_point_tol, at which a token's iteration may end")
        if self.warm_start and self.block == "paper":
            raise UserError("warm_start needs a block that comes to rest: block=post_norm")
        check(self.beta, self.fixed_point_tol, self.backward, self.solver, self.keep_every)

    @property
    def max_seq_len(self) -> int:
        """The longest context, by the name that the zoo's language models share."""
        return self.max_position_embeddings

    @property
    def evaluations(self) -> int:
        """Of the cell in a pass without a tolerance."""
        return self.num_fixed_point_iterations * (2 if self.solver == "reversible" else 1)


def unturned(query: Tensor, key: Tensor, start: int | Tensor = 0) -> tuple[Tensor, Tensor]:
    """What stands in for rotary embedding where positions are learned."""
    return query, key


class Layer(nn.Module):
    """Attention and an MLP over the state z (B, T, d), with the input x (B, T, d) injected."""

    def __init__(self, config: RevDEQConfig) -> None:
        super().__init__()
        d, inner = config.hidden_size, [config.intermediate_size] * config.mlp_layers
        self.post_norm, self.keep = config.block == "post_norm", 1 - config.dropout
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = Attention(d, config.num_heads, config.num_heads)
        self.mlp = nn.ModuleList(Linear(n, m) for n, m in pairwise([d, *inner, d]))

    def feed_forward(self, h: Tensor) -> Tensor:
        *hidden, last = self.mlp
        for linear in hidden:
            h = F.gelu(linear(h), approximate="tanh")  # (B, T, inner)
        return last(h)

    def forward(self, z: Tensor, x: Tensor, rotary: Any, masks: Sequence[Tensor | None], **past: Any) -> Tensor:
        after_attention, after_mlp = masks
        if self.post_norm:
            h = z + x
            h = self.norm1(h + self.drop(self.attention(h, rotary, **past), after_attention))
            return self.norm2(h + self.drop(self.feed_forward(h), after_mlp))
        z = z + self.drop(self.attention(self.norm1(z + x), rotary, **past), after_attention)
        return z + self.drop(self.feed_forward(self.norm2(z)), after_mlp)

    def drop(self, h: Tensor, mask: Tensor | None) -> Tensor:
        return h if mask is None else h * mask / self.keep


class Cell(nn.Module):
    """f(z, (x, *masks)): the layers, one after another; two dropout masks (B, T, d) for each, or none."""

    def __init__(self, config: RevDEQConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        turns = config.positions == "rotary"
        head_dim = config.hidden_size // config.num_heads
        self.rotary: Any = RotaryEmbedding(head_dim, config.max_position_embeddings) if turns else unturned

    def forward(self, z: Tensor, inputs: tuple[Tensor, ...], cache: Past | None = None, **past: Any) -> Tensor:
        """z (B, T, d) to f(z) (B, T, d)."""
        x, *masks = inputs
        for number, layer in enumerate(self.layers):
            if cache is not None:
                kept, first, start = cache
                past["cache"] = kept, first + number, start
            z = layer(z, x, self.rotary, masks[2 * number : 2 * number + 2] or (None, None), **past)
        return z


class RevDEQ(nn.Module):
    """Tokens (B, T) to logits (B, T, V) of the next token at each position, by RevDEQConfig's sizes."""

    def __init__(self, config: RevDEQConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.tok_embeddings = nn.Embedding(config.vocab_size, d)
        if config.positions == "learned":
            self.pos_embeddings = nn.Embedding(config.max_position_embeddings, d)
        self.cell = Cell(config)
        self.norm = nn.LayerNorm(d)
        if not config.tie_embeddings:
            self.output = nn.Linear(d, config.vocab_size, bias=False)
        # Torch's own initialization is the original's too: N(0, 1) for embeddings, U(+-1 / sqrt(n)) for matrices. What
        # is injected must not be small, or the norm on it magnifies every change of z, and the way back loses digits.
        self.scale = 1.0
        if config.tie_embeddings:
            self.scale = math.sqrt(d)
            nn.init.normal_(self.tok_embeddings.weight, std=1 / self.scale)

    @property
    def output_weight(self) -> Tensor:
        """The matrix (V, d) from hidden states to logits."""
        return self.tok_embeddings.weight if self.config.tie_embeddings else self.output.weight

    def solve(
        self, tokens: Tensor, f: Any = None, start: int = 0, left_padding: Tensor | None = None, **settings: Any
    ) -> Solution:
        """The state (B, T, d) that the iteration comes to for tokens (B, T), which stand at positions start ... less
        `left_padding` (B,) where their row is padded on the left. `f` in place of the cell, other settings of `solve`."""
        end = start + tokens.shape[1]
        if end > self.config.max_position_embeddings:
            raise UserError(f"{end} tokens are more than the model's context of {self.config.max_position_embeddings}")
        x = self.scale * self.tok_embeddings(tokens)  # (B, T, d)
        if self.config.positions == "learned":
            at = torch.arange(start, end, device=tokens.device)
            x = x + self.pos_embeddings(at if left_padding is None else (at - left_padding[:, None]).clamp(min=0))
        masks: list[Tensor] = []
        if self.training and (p := self.config.dropout):
            x = F.dropout(x, p)
            masks = [torch.rand_like(x) >= p for _ in range(2 * self.config.num_layers)]
        c = self.config
        ways: dict[str, Any] = {"beta": c.beta, "max_steps": c.num_fixed_point_iterations, "tol": c.fixed_point_tol}
        ways |= {"backward": c.backward, "keep_every": c.keep_every, "solver": c.solver, **settings}
        return solve(self.cell if f is None else f, (x, *masks), **ways)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) and the hidden states after the final norm (B, T, d) of tokens (B, T)."""
        hidden = self.norm(self.solve(tokens).z)
        return F.linear(hidden, self.output_weight), hidden

    def loss(self, tokens: Tensor, targets: Tensor, solution: Solution | None = None) -> Tensor:
        """Mean negative log-likelihood, in nats, of targets (B, T) given tokens (B, T); -100 does not count."""
        hidden = self.norm((solution or self.solve(tokens)).z)  # (B, T, d)
        return linear_nll(hidden.flatten(0, 1), self.output_weight, targets.flatten())

    slides = True  # generation continues past the context from its last half

    def generate(self, tokens: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
        """Tokens (B, T) continued to at most (B, T + max_new_tokens); options as in zoo.generation.sampling."""
        from zoo.generation.sampling import generate

        return generate(self, tokens, max_new_tokens, **options)

    def decoder(self, batch_size: int, max_len: int, precision: str = "fp32", compile: bool = False) -> "Decoder":
        """A decoder with a key-value cache for `batch_size` rows of at most `max_len` tokens."""
        from zoo.revdeq.decoder import Decoder

        if compile:
            raise UserError("RevDEQ decodes eagerly: drop --compile")
        return Decoder(self, batch_size, max_len, precision)

    def flops_per_token(self, seq_len: int) -> int:
        """Floating-point operations of training on one token, what is computed twice counted once: 6 for every weight
        of the head, and of the cell at each of its evaluations; and attention's, without the causal mask's saving.
        """
        c = self.config
        cell = sum(p.numel() for p in self.cell.parameters())
        attention = 12 * c.num_layers * c.hidden_size * seq_len
        return c.evaluations * (6 * cell + attention) + 6 * self.output_weight.numel()
