"""Llama: a decoder-only transformer with RMSNorm, rotary positions, grouped-query attention and SwiGLU.

Touvron et al. 2023, https://arxiv.org/abs/2302.13971 and https://arxiv.org/abs/2307.09288 (Llama 2); shapes and
initialization as in https://github.com/karpathy/llama2.c. Departures:
- the projections that read the same input are one matrix each (wqkv, w13); checkpoint.py splits and joins them;
- dropout acts on the embeddings and on both residual branches, not on the attention weights, for which SDPA
  would leave its fused kernel.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.errors import UserError
from zoo.layers import Attention, FeedForward, KVCache, RMSNorm, RotaryEmbedding
from zoo.layers.attention import causal_mask
from zoo.layers.linear_nll import linear_nll

if TYPE_CHECKING:
    from zoo.llama.decoder import Decoder

SCALING_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


@dataclass
class LlamaConfig:
    """Sizes and constants; n_kv_heads None means n_heads, hidden_dim None 8/3 dim rounded up to multiple_of.

    rope_scaling is Llama 3.1's, with Hugging Face's keys (see zoo.layers.rotary). gradient_checkpointing
    recomputes each layer in the backward pass: less memory, about a third more time. Contradictory settings
    raise ValueError.
    """

    vocab_size: int = 32000
    dim: int = 512
    n_layers: int = 8
    n_heads: int = 8
    n_kv_heads: int | None = None
    hidden_dim: int | None = None
    multiple_of: int = 32
    max_seq_len: int = 1024
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None
    tie_embeddings: bool = True
    dropout: float = 0.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "n_layers", "n_heads", "multiple_of", "max_seq_len"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("n_kv_heads", "hidden_dim"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, or null for its default, not {getattr(self, name)}")
        if self.dim % self.n_heads:
            raise UserError(f"dim {self.dim} does not divide into n_heads {self.n_heads}")
        if self.head_dim % 2:
            raise UserError(
                f"dim / n_heads = {self.head_dim} is odd, but rotary embedding turns pairs: make it even"
            )
        if self.n_heads % self.kv_heads:
            raise UserError(f"n_heads {self.n_heads} does not divide into n_kv_heads {self.n_kv_heads}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must lie in [0, 1), not {self.dropout}")
        if not (self.norm_eps > 0 and self.rope_theta > 0):
            raise UserError("norm_eps and rope_theta must be positive")
        if self.rope_scaling is not None and (lacking := [k for k in SCALING_KEYS if k not in self.rope_scaling]):
            raise UserError(f"rope_scaling lacks {', '.join(lacking)}: only Llama 3's scaling is known here")

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def ffn_dim(self) -> int:
        """Width of SwiGLU's gate."""
        if self.hidden_dim is not None:
            return self.hidden_dim
        return math.ceil(int(2 * 4 * self.dim / 3) / self.multiple_of) * self.multiple_of


class LlamaLayer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config.dim, config.n_heads, config.kv_heads)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config.dim, config.ffn_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: RotaryEmbedding, **past: Any) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, **past))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))


class Llama(nn.Module):
    """Tokens (B, T) to logits (B, T, V) of the next token at each position, by LlamaConfig's sizes."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.rotary = RotaryEmbedding(
            config.head_dim, config.max_seq_len, config.rope_theta, config.rope_scaling
        )
        self.layers = nn.ModuleList(LlamaLayer(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        if not config.tie_embeddings:
            self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # the branches that end in the residual stream begin smaller: GPT-2
                residual = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layers) if residual else 0.02)

    @property
    def output_weight(self) -> Tensor:
        """The matrix (V, dim) from hidden states to logits."""
        return self.tok_embeddings.weight if self.config.tie_embeddings else self.output.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) and the hidden states after the final norm (B, T, dim) of tokens (B, T)."""
        hidden = self.hidden(tokens)  # (B, T, dim)
        return F.linear(hidden, self.output_weight), hidden

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood, in nats, of targets (B, T) given tokens (B, T); -100 does not count."""
        return linear_nll(self.hidden(tokens).flatten(0, 1), self.output_weight, targets.flatten())

    def hidden(
        self, tokens: Tensor, cache: KVCache | None = None, start: int = 0, left_padding: Tensor | None = None
    ) -> Tensor:
        """The hidden states after the final norm, (B, T, dim), of tokens (B, T).

        With a cache, tokens stand at its columns start ... start + T - 1 and see all columns before; the first
        `left_padding` (B,) columns of a row are padding, neither seen nor counted as positions.
        """
        end = start + tokens.shape[1]
        if end > self.config.max_seq_len:
            raise UserError(f"{end} tokens are more than the model's context of {self.config.max_seq_len}")
        past: dict[str, Any] = {}
        if start or left_padding is not None:
            past = {"left_padding": left_padding, "mask": causal_mask(start, end, left_padding, tokens.device)}
        x = self.dropout(self.tok_embeddings(tokens))  # (B, T, dim)
        for number, layer in enumerate(self.layers):
            if cache is not None:
                x = layer(x, self.rotary, cache=(cache, number, start), **past)
            elif self.config.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, self.rotary, use_reentrant=False)
            else:
                x = layer(x, self.rotary)
        return self.norm(x)

    def generate(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        **options: Any,
    ) -> Tensor:
        """Tokens (B, T) continued to at most (B, T + max_new_tokens); options as in zoo.generation.sampling."""
        from zoo.generation.sampling import generate

        return generate(self, tokens, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, **options)

    def decoder(self, batch_size: int, max_len: int, precision: str = "fp32", compile: bool = False) -> "Decoder":
        """A decoder with a key-value cache for `batch_size` rows of at most `max_len` tokens."""
        from zoo.llama.decoder import Decoder

        return Decoder(self, batch_size, max_len, precision, compile)

    def flops_per_token(self, seq_len: int) -> int:
        """Floating-point operations of training on one token: 6 N + 12 L d T, forward and backward.

        N counts the parameters that take part in arithmetic: all of them but an untied input embedding,
        which is only looked up. The second term is attention's (Chowdhery et al. 2022, appendix B, without
        the saving of the causal mask).
        """
        active = sum(parameter.numel() for parameter in self.parameters())
        if not self.config.tie_embeddings:
            active -= self.tok_embeddings.weight.numel()
        return 6 * active + 12 * self.config.n_layers * self.config.dim * seq_len
