"""Llama: a decoder-only transformer with RMSNorm, rotary positions, grouped-query attention and SwiGLU.

Touvron et al. 2023, https://arxiv.org/abs/2302.13971 and https://arxiv.org/abs/2307.09288 (Llama 2); shapes and
initialization as in https://github.com/karpathy/llama2.c. Departures:
- projections that read the same input are one matrix (wqkv, w13); checkpoints/names.py converts the parameter names;
- dropout acts on the embeddings and on both residual branches, not on the attention weights, where it would disable the
  fused kernel of scaled_dot_product_attention.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.errors import UserError, check_counts, check_number, check_positive, check_probability
from zoo.generation import sampling
from zoo.layers import Attention, FeedForward, KVCache, RMSNorm, RotaryEmbedding
from zoo.layers.attention import causal_mask
from zoo.layers.linear_nll import linear_nll
from zoo.llama.decoder import LlamaDecoder

SCALING_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")

# Settings that change what a Llama computes, but not the shapes of its weights.
NETWORK_ARGUMENTS = ("n_heads", "norm_eps", "rope_theta", "rope_scaling")


@dataclass
class LlamaConfig:
    """Sizes and constants of a Llama. The defaults are llama2.c's 42M shape.

    Args:
        vocab_size: number of token ids.
        dim: width of the hidden states; a multiple of 2 n_heads.
        n_layers: number of layers, at least 1.
        n_heads: number of query heads, at least 1.
        n_kv_heads: number of key-value heads, a divisor of n_heads; null means n_heads.
        hidden_dim: width of the feed-forward layer; null means 8/3 dim, rounded up to a multiple of multiple_of.
        multiple_of: unit of the default hidden_dim, at least 1; not used if hidden_dim is given.
        max_seq_len: longest context in tokens, at least 1.
        norm_eps: constant added to the mean square in RMSNorm; positive.
        rope_theta: base of the rotary wavelengths; positive.
        rope_scaling: Llama 3.1's scaling of the rotary frequencies, a mapping with Hugging Face's keys factor,
            low_freq_factor, high_freq_factor and original_max_position_embeddings; null means none.
        tie_embeddings: use the embedding matrix as output matrix.
        dropout: probability of zeroing an element of the embeddings and of the residual branches in training, in [0,
            1).
        gradient_checkpointing: recompute each layer in the backward pass: less memory, about a third more time.
        padded_vocab_size: rows of the embedding and output matrices, at least vocab_size, for example a multiple of 64;
            ids from vocab_size on are never generated; null means vocab_size.
        stop_tokens: ids that end a generated text, in addition to the tokenizer's; null means none. A Hugging Face
            folder sets them to its eos_token_id.

    Raises:
        UserError: a setting is outside its range, or two sizes do not divide as stated.
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
    padded_vocab_size: int | None = None
    stop_tokens: list[int] | None = None

    def __post_init__(self) -> None:
        # Sizes are at least 1; those with a default may also be null.
        sizes = ("vocab_size", "dim", "n_layers", "n_heads", "multiple_of", "max_seq_len")
        check_counts(**{name: getattr(self, name) for name in sizes})
        for name in ("n_kv_heads", "hidden_dim", "padded_vocab_size"):
            if (size := getattr(self, name)) is not None:
                check_number(name, size, "at least 1, or null for its default", lambda n: n >= 1, whole=True)
        if self.n_rows < self.vocab_size:
            raise UserError(f"padded_vocab_size {self.padded_vocab_size} must be at least vocab_size {self.vocab_size}")
        if self.stop_tokens is not None and not (
            isinstance(self.stop_tokens, list)
            and all(type(i) is int and 0 <= i < self.n_rows for i in self.stop_tokens)
        ):
            raise UserError(
                f"stop_tokens must be a list of token ids below {self.n_rows}, not {self.stop_tokens!r:.60}"
            )
        if self.dim % self.n_heads:
            raise UserError(f"dim {self.dim} is not a multiple of n_heads {self.n_heads}: change one of them")
        if self.head_dim % 2:
            raise UserError(
                f"dim / n_heads = {self.head_dim} is odd, but rotary embedding rotates pairs: set dim to a multiple of "
                f"{2 * self.n_heads}"
            )
        # Every key-value head serves the same number of query heads.
        if self.n_heads % self.kv_heads:
            raise UserError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}: set n_kv_heads to a divisor"
            )
        check_probability("dropout", self.dropout)
        check_positive("norm_eps", self.norm_eps)
        check_positive("rope_theta", self.rope_theta)
        if self.rope_scaling is not None:
            if missing := [key for key in SCALING_KEYS if key not in self.rope_scaling]:
                raise UserError(f"rope_scaling lacks {', '.join(missing)}: only Llama 3's scaling is supported")
            for key in SCALING_KEYS:
                check_positive(f"{key} in rope_scaling", self.rope_scaling[key])
            if self.rope_scaling["low_freq_factor"] >= self.rope_scaling["high_freq_factor"]:
                raise UserError(
                    "rope_scaling has a low_freq_factor of at least high_freq_factor: set it to a smaller one"
                )

    @property
    def n_rows(self) -> int:
        """Rows of the embedding and output matrices."""
        return self.vocab_size if self.padded_vocab_size is None else self.padded_vocab_size

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Number of key-value heads."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward layer."""
        if self.hidden_dim is not None:
            return self.hidden_dim
        return math.ceil(int(2 * 4 * self.dim / 3) / self.multiple_of) * self.multiple_of


class LlamaLayer(nn.Module):
    """A transformer layer: x + attention(norm(x)), then x + feed_forward(norm(x))."""

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
    """The network: tokens (B, T) to logits (B, T, V) of the next token at each position.

    Args:
        config: sizes and constants.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.n_rows, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        # The layers share one table of rotary angles.
        self.rotary = RotaryEmbedding(config.head_dim, config.max_seq_len, config.rope_theta, config.rope_scaling)
        self.layers = nn.ModuleList(LlamaLayer(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        # With tied embeddings, the embedding matrix also maps hidden states to logits.
        if not config.tie_embeddings:
            self.output = nn.Linear(config.dim, config.n_rows, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # As in GPT-2, matrices whose output is added to the residual stream start smaller.
                is_residual = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layers) if is_residual else 0.02)

    @property
    def output_weight(self) -> Tensor:
        """The matrix (V, dim) from hidden states to logits."""
        return self.tok_embeddings.weight if self.config.tie_embeddings else self.output.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) and the hidden states after the final norm (B, T, dim) of tokens (B, T)."""
        hidden = self.hidden(tokens)  # (B, T, dim)
        return F.linear(hidden, self.output_weight), hidden

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood, in nats, of targets (B, T) given tokens (B, T); -100 is ignored."""
        return linear_nll(self.hidden(tokens).flatten(0, 1), self.output_weight, targets.flatten())

    def hidden(
        self, tokens: Tensor, cache: KVCache | None = None, start: int = 0, left_padding: Tensor | None = None
    ) -> Tensor:
        """The hidden states after the final norm, (B, T, dim), of tokens (B, T).

        Args:
            tokens: ids (B, T).
            cache: keys and values of earlier tokens; those of `tokens` are added at columns start ... start + T - 1.
            start: number of columns already in the cache, all visible to `tokens`.
            left_padding: (B,) number of columns on the left that are padding: not visible, and not counted as
                positions.

        Raises:
            UserError: the tokens exceed the context.
        """
        # The tokens occupy columns start ... end - 1, which must fit into the rotary table.
        end = start + tokens.shape[1]
        if end > self.config.max_seq_len:
            raise UserError(
                f"{end} tokens are more than the model's context of {self.config.max_seq_len}: give a shorter text, or "
                "shorter windows (--data.seq_len)"
            )
        past: dict[str, Any] = {}
        if start or left_padding is not None:
            # Otherwise attention is plainly causal, for which no mask is needed.
            past = {"left_padding": left_padding, "mask": causal_mask(start, end, left_padding, tokens.device)}
        # The residual stream starts as the token embeddings, and each layer adds to it.
        x = self.dropout(self.tok_embeddings(tokens))  # (B, T, dim)
        for number, layer in enumerate(self.layers):
            # Decoding extends the layer's keys and values in the cache; training may recompute layers to save memory.
            if cache is not None:
                x = layer(x, self.rotary, cache=(cache, number, start), **past)
            elif self.config.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, self.rotary, use_reentrant=False, **past)
            else:
                x = layer(x, self.rotary, **past)
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
        """Continue prompts by sampling.

        Args:
            tokens: prompts, ids (B, T), T at least 1.
            max_new_tokens: number of new tokens of each row, at most.
            temperature: divides the logits, at least 0; 0 takes the most likely token.
            top_k: sample among the k most likely tokens only; None: all.
            top_p: sample among the fewest most likely tokens whose total probability reaches top_p; None: all.
            **options: the other options of `zoo.generation.sampling.stream_tokens`, such as seed and stop.

        Returns:
            The prompts with their continuations, (B, T + n), n at most max_new_tokens.

        Raises:
            UserError: an option or the shape or type of `tokens` is wrong.
        """
        return sampling.generate(
            self, tokens, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, **options
        )

    def decoder(self, batch_size: int, max_len: int, precision: str = "fp32", compile: bool = False) -> LlamaDecoder:
        """A decoder with a key-value cache for `batch_size` rows of at most `max_len` tokens."""
        return LlamaDecoder(self, batch_size, max_len, precision, compile)

    def flops_per_token(self, seq_len: int) -> int:
        """Floating-point operations of training on one token: 6 N + 12 L d T, forward and backward.

        N counts the parameters that are multiplied: all except an untied input embedding, which is only looked up. The
        second term is that of attention (Chowdhery et al. 2022, appendix B), as if every position saw all T positions.
        """
        # N: a tied embedding counts, because it is multiplied as output matrix.
        active = sum(parameter.numel() for parameter in self.parameters())
        if not self.config.tie_embeddings:
            active -= self.tok_embeddings.weight.numel()
        return 6 * active + 12 * self.config.n_layers * self.config.dim * seq_len
