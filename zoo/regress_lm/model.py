"""RegressLM's encoder-decoder: a text in, the tokens of its numbers out.

Akhauri et al. 2025, https://arxiv.org/abs/2506.21718; Song & Bahri 2025, https://arxiv.org/abs/2501.19383; sizes and
parameter names as in https://github.com/google-deepmind/regress-lm, so that its weights load. Encoder and decoder are
pre-norm. The encoder rotates queries and keys by their positions and ends in a norm; the decoder adds sinusoidal
positions and lacks a final norm. Departures from upstream:
- a mask marks padding, not an id; it is omitted where no row is padded;
- each decoder layer draws its own initial weights (upstream's start as copies of one layer);
- the decoder shifts the number tokens itself and computes no position after the last of them.
Three shortcuts give the same results at lower cost:
- many samples for one text are additional queries of the text's single set of keys and values;
- few queries are mapped into the memory's space instead, so that the memory is not projected to keys and values:
  (W_q x) . (W_k m) = (W_k^T W_q x) . m;
- where a batch has more tokens than the vocabulary, the first layer projects the vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.errors import UserError, check_counts, check_probability
from zoo.layers import RotaryEmbedding
from zoo.layers.attention import attend
from zoo.layers.rotary import rotate

KeysValues = tuple[Tensor, Tensor]  # (B, H, T, hd) each
CPU_CHUNK = 512  # tokens per feed-forward call on a CPU, so that the hidden layer fits into the cache


@dataclass
class RegressLMConfig:
    """Sizes of an `EncoderDecoder`.

    Args:
        vocab_size: number of token ids of the texts.
        number_vocab_size: number of token ids of the numbers.
        number_len: tokens of all numbers of a text together.
        dim: width of all layers, a multiple of n_heads.
        n_encoder_layers: layers of the encoder, at least 1.
        n_decoder_layers: layers of the decoder, at least 1.
        n_heads: attention heads; they divide dim into parts, which are even in the encoder.
        n_encoder_heads: attention heads of the encoder, if their number differs, a divisor of dim; None for n_heads.
        gradient_checkpointing: recompute each layer of the encoder in the backward pass: less memory, more time.
        hidden_dim: width of the hidden layer of each feed-forward block, at least 1; None for 4 dim.
        dropout: dropout probability inside the feed-forward blocks, from 0 to below 1.
        residual_dropout: dropout probability of the output of each attention and feed-forward block, from 0 to below 1.
        max_input_len: longest text in tokens, at least 1. Short texts cost no more with a larger value.

    Raises:
        UserError: a setting is outside its range, or heads do not divide dim.
    """

    vocab_size: int
    number_vocab_size: int
    number_len: int
    dim: int = 128
    n_encoder_layers: int = 2
    n_decoder_layers: int = 2
    n_heads: int = 8
    hidden_dim: int | None = None
    dropout: float = 0.0
    residual_dropout: float = 0.0
    max_input_len: int = 2048
    n_encoder_heads: int | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        # Dropout is a probability; all other settings are sizes, of which some may be None.
        for field in fields(RegressLMConfig):
            value = getattr(self, field.name)
            if "dropout" in field.name:
                check_probability(field.name, value)
            elif field.type is not bool and (field.name not in ("hidden_dim", "n_encoder_heads") or value is not None):
                check_counts(**{field.name: value})
        # The encoder rotates pairs of numbers; the decoder does not.
        if self.dim % (2 * self.encoder_heads):
            name = "n_encoder_heads" if self.n_encoder_heads else "n_heads"
            raise UserError(f"dim {self.dim} is not a multiple of 2 {name} = {2 * self.encoder_heads}")
        if self.dim % self.n_heads:
            raise UserError(f"dim {self.dim} is not a multiple of n_heads {self.n_heads}")

    @property
    def encoder_heads(self) -> int:
        """Attention heads of the encoder."""
        return self.n_encoder_heads or self.n_heads

    @property
    def feed_forward_dim(self) -> int:
        """Width of the hidden layer of each feed-forward block."""
        return self.hidden_dim or 4 * self.dim


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation of `zoo.layers.rotary.rotate`, as one multiplication of complex numbers unless it is compiled."""
    if torch.compiler.is_compiling():
        return rotate(x, cos, sin)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (..., hd / 2)
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).type_as(x)  # (..., hd)


class Attention(nn.Module):
    """The decoder's attention, with the parameter names of torch.nn.MultiheadAttention: rows q, k, v in one matrix."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * dim, dim)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, x: Tensor, parts: slice) -> tuple[Tensor, ...]:
        """x (B, T, dim) projected to the chosen parts of (query, key, value), each (B, H, T, hd)."""
        # Rows of the chosen projections, as one product.
        weight = self.in_proj_weight.unflatten(0, (3, -1))[parts].flatten(0, 1)
        bias = self.in_proj_bias.unflatten(0, (3, -1))[parts].flatten()
        heads = F.linear(x, weight, bias).unflatten(-1, (-1, self.n_heads, x.shape[-1] // self.n_heads))
        return heads.permute(2, 0, 3, 1, 4).unbind()

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor, causal: bool = False, mask: Tensor | None = None
    ) -> Tensor:
        """query (N, H, L, hd) over keys and values (N, H, T, hd) -> (N, L, dim)."""
        attended = attend(query, keys, values, causal=causal, mask=mask)  # (N, H, L, hd)
        return self.out_proj(attended.transpose(1, 2).flatten(2))  # (N, L, dim)

    def cross_attend(self, query: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """query (B, H, L, hd) over memory (B, T, dim), without projecting the memory to keys and values -> (B, L, dim).

        The heads share the memory as their only key-value head. The keys' bias adds a constant to all scores of a query
        and therefore does not change the result.
        """
        _, key, value = self.in_proj_weight.view(3, self.n_heads, -1, memory.shape[-1])  # (H, hd, dim) each
        # Queries of all heads in the memory's space.
        queries = (query @ key).flatten(1, 2)[:, None]  # (B, 1, H L, dim)
        attended = F.scaled_dot_product_attention(
            queries, memory[:, None], memory[:, None], attn_mask=mask, scale=query.shape[-1] ** -0.5
        )
        # Project to values after mixing instead of before. The attention weights sum to 1, so the bias is added once.
        mixed = attended.view(*query.shape[:3], -1) @ value.mT  # (B, H, L, hd)
        bias = self.in_proj_bias.view(3, self.n_heads, 1, -1)[2]  # (H, 1, hd)
        return self.out_proj((mixed + bias).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """linear2(dropout(relu(linear1(x)))), the part that encoder and decoder layers share."""

    def __init__(self, config: RegressLMConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.dim, config.feed_forward_dim)
        self.linear2 = nn.Linear(config.feed_forward_dim, config.dim)
        self.dropout, self.residual = nn.Dropout(config.dropout), nn.Dropout(config.residual_dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        """x (N, L, dim) -> (N, L, dim); on a CPU in chunks, as a long text's hidden layer dominates the memory."""
        if not torch.compiler.is_compiling() and x.device.type == "cpu" and x.shape[:2].numel() > CPU_CHUNK:
            return torch.cat([self._feed_forward(chunk) for chunk in x.flatten(0, 1).split(CPU_CHUNK)]).view_as(x)
        return self._feed_forward(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x), inplace=True)))


class EncoderLayer(FeedForward):
    """x + attention(norm1(x)), then x + feed_forward(norm2(x)); every token attends to all tokens except padding."""

    def __init__(self, config: RegressLMConfig) -> None:
        super().__init__(config)
        self.n_heads, dim = config.encoder_heads, config.dim
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of norm1(x): (..., dim) -> (..., 3 dim)."""
        parts = self.q_proj, self.k_proj, self.v_proj
        return F.linear(self.norm1(x), torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]))

    def forward(self, x: Tensor, projected: Tensor, rotary: RotaryEmbedding, mask: Tensor | None) -> Tensor:
        """x (B, T, dim) -> (B, T, dim), where `projected` (B, T, 3 dim) is `project(x)`."""
        # Rotate queries and keys by their positions.
        cos, sin = rotary.cos[: x.shape[1], None], rotary.sin[: x.shape[1], None]  # (T, 1, hd / 2)
        query, key, value = projected.unflatten(-1, (3, self.n_heads, -1)).unbind(2)  # (B, T, H, hd) each
        query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # (B, H, T, hd) each
        # Every token attends to all tokens except padding; both branches are added to the residual stream.
        attended = attend(query, key, value, mask=mask)  # (B, H, T, hd)
        x = x + self.residual(self.out_proj(attended.transpose(1, 2).flatten(2)))  # (B, T, dim)
        return x + self.residual(self.feed_forward(self.norm2(x)))


class Encoder(nn.Module):
    """Tokens (B, T) to memory (B, T, dim)."""

    def __init__(self, config: RegressLMConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.rotary = RotaryEmbedding(config.dim // config.encoder_heads, config.max_input_len)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_encoder_layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, tokens: Tensor, mask: Tensor | None, table: Tensor | None = None) -> Tensor:
        """The memory (B, T, dim) of tokens (B, T).

        Args:
            tokens: ids.
            mask: (B, 1, 1, T) boolean, True at tokens; None without padding.
            table: embeddings (V, dim) to use instead of the encoder's own.
        """
        # Embed the tokens; positions enter by the rotation inside each layer.
        table = self.embedding.weight if table is None else table
        x = F.embedding(tokens, table)  # (B, T, dim)
        layers: Any = self.layers

        def run(number: int, x: Tensor) -> Tensor:
            # The first layer's projections depend on the token id only: project whichever is fewer, ids or tokens. An
            # exported graph, whose number of tokens is not known, projects the tokens.
            if number == 0 and not torch.compiler.is_exporting() and tokens.numel() > len(table):
                projected = F.embedding(tokens, layers[0].project(table))  # (B, T, 3 dim)
            else:
                projected = layers[number].project(x)  # (B, T, 3 dim)
            return layers[number](x, projected, self.rotary, mask)

        recomputes = self.config.gradient_checkpointing and torch.is_grad_enabled()
        for number in range(len(layers)):
            x = checkpoint(run, number, x, use_reentrant=False) if recomputes else run(number, x)
        return self.norm(x)

    def multiplications(self, length: int) -> float:
        """Multiplications of a forward pass over one text of `length` tokens."""
        # 4 d^2 per token for the projections of attention, 2 d h for the feed-forward part, and 2 d per pair of query
        # and key.
        c = self.config
        per_token = 4 * c.dim**2 + 2 * c.feed_forward_dim * c.dim
        return c.n_encoder_layers * (per_token * length + 2 * c.dim * length**2)


class DecoderLayer(FeedForward):
    """Causal self-attention to the number so far, cross-attention to the text, feed-forward; each x + f(norm(x))."""

    def __init__(self, config: RegressLMConfig) -> None:
        super().__init__(config)
        self.self_attn = Attention(config.dim, config.n_heads)
        self.multihead_attn = Attention(config.dim, config.n_heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.dim) for _ in range(3))

    def forward(
        self, x: Tensor, text: Tensor | KeysValues, mask: Tensor | None, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """x (N, L, dim) and the keys and values of all positions so far, (N, H, past + L, hd) each.

        Args:
            x: N rows of L positions; N is B or a multiple M B of it, and rows b M ... b M + M - 1 attend to text b.
            text: the memory of B texts (B, T, dim), or its keys and values.
            mask: (B, 1, 1, T) boolean, True at tokens; None if no text is padded.
            past: keys and values of earlier positions; L is then 1.
        """
        # Self-attention to the number tokens so far.
        query, *present = self.self_attn.project(self.norm1(x), slice(0, 3))  # (N, H, L, hd) each
        keys, values = present if past is None else (torch.cat(pair, 2) for pair in zip(past, present, strict=True))
        is_causal = past is None and (torch.compiler.is_exporting() or x.shape[1] > 1)  # an exported L has any value
        x = x + self.residual(self.self_attn(query, keys, values, causal=is_causal))
        # Cross-attention: the M rows of a text are M L queries of its memory.
        batch = (text if isinstance(text, Tensor) else text[0]).shape[0]
        queries = self.norm2(x).view(batch, -1, x.shape[-1])  # (B, M L, dim)
        (query,) = self.multihead_attn.project(queries, slice(0, 1))  # (B, H, M L, hd)
        if isinstance(text, Tensor):
            attended = self.multihead_attn.cross_attend(query, text, mask)  # (B, M L, dim)
        else:
            attended = self.multihead_attn(query, *text, mask=mask)  # (B, M L, dim)
        x = x + self.residual(attended.view_as(x))
        return x + self.residual(self.feed_forward(self.norm3(x))), (keys, values)


class DecoderStack(nn.Module):
    """The decoder's layers, under the parameter names of upstream."""

    def __init__(self, config: RegressLMConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_decoder_layers))


class EncoderDecoder(nn.Module):
    """Tokens of texts (B, T) and of their numbers (B, L) to logits (B, L, V) of the number tokens.

    Args:
        config: sizes.
        encoder: a module in place of the encoder that `config` describes, with the `forward` and `multiplications` of
            `Encoder`.
    """

    positions: Tensor

    def __init__(self, config: RegressLMConfig, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder: Any = Encoder(config) if encoder is None else encoder
        self.tgt_tok_emb = nn.Embedding(config.number_vocab_size, config.dim)
        self.decoder = DecoderStack(config)
        self.generator = nn.Linear(config.dim, config.number_vocab_size)
        # Sinusoidal positions with sine and cosine in alternate columns: Vaswani et al. 2017, section 3.5.
        # Angles in fp32, the table in the dtype of the parameters, which is torch's default.
        rate = torch.exp(torch.arange(0, config.dim, 2).float() * (-math.log(10000.0) / config.dim))
        angles = torch.arange(config.number_len)[:, None] * rate  # (L, dim / 2)
        table = torch.stack((angles.sin(), angles.cos()), -1).flatten(1).to(torch.get_default_dtype())  # (L, dim)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, tokens: Tensor, numbers: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Logits (B, L, V): position l predicts numbers[:, l] from numbers[:, :l] and the text.

        Args:
            tokens: (B, T) ids of the texts.
            numbers: (B, L) ids of the number tokens, or of the first L of them.
            padding_mask: (B, T) boolean, True at tokens and False at padding; None if no row is padded.
        """
        # Encode the text.
        memory = self.encode(tokens, padding_mask)  # (B, T, dim)
        # With few queries, counted over the heads, attending to the memory itself is cheaper than projecting it.
        has_few_queries = numbers.shape[1] * self.config.n_heads < self.config.dim
        text = [memory] * self.config.n_decoder_layers if has_few_queries else self.project_memory(memory)
        shifted = F.pad(numbers[:, :-1], (1, 0))  # (B, L): 0 starts every row
        return self.decode(shifted, text, padding_mask)[0]

    def encode(self, tokens: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """The memory (B, T, dim) of tokens (B, T); its values at padding are meaningless."""
        if tokens.shape[1] > self.config.max_input_len:
            raise UserError(
                f"{tokens.shape[1]} tokens are more than the model's max_input_len of {self.config.max_input_len}"
            )
        return self.encoder(tokens, _attention_mask(padding_mask))

    def project_memory(self, memory: Tensor) -> list[KeysValues]:
        """Keys and values (B, H, T, hd) of a memory (B, T, dim) for each decoder layer."""
        layers: Any = self.decoder.layers
        return [layer.multihead_attn.project(memory, slice(1, 3)) for layer in layers]

    def decode(
        self,
        inputs: Tensor,
        text: Sequence[Tensor | KeysValues],
        padding_mask: Tensor | None = None,
        past: list[KeysValues] | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Logits (N, L, V) of the token after each of `inputs` (N, L), and each layer's keys and values so far.

        Args:
            inputs: number tokens (N, L); N is B or a multiple of it (see DecoderLayer).
            text: for each layer the memory, or its keys and values from `project_memory`.
            padding_mask: (B, T) boolean, True at tokens; None if no text is padded.
            past: the keys and values that an earlier call returned; `inputs` (N, 1) then follow those positions.
        """
        # Embed the tokens with their positions, which continue those of the past.
        start = 0 if past is None else past[0][0].shape[2]
        x = self.tgt_tok_emb(inputs) + self.positions[start : start + inputs.shape[1]]  # (N, L, dim)
        so_far = []
        for number, layer in enumerate(self.decoder.layers):
            x, present = layer(x, text[number], _attention_mask(padding_mask), None if past is None else past[number])
            so_far.append(present)
        return self.generator(x), so_far

    def flops(self, length: int) -> float:
        """Floating-point operations of training on one text of `length` tokens, forward and backward."""
        # Multiplications of a forward pass, counted as in `Encoder.multiplications`.
        c, number_len = self.config, self.config.number_len
        square, feed_forward = c.dim**2, 2 * c.feed_forward_dim * c.dim
        encoder = self.encoder.multiplications(length)
        cross_attention = 2 * square * (length + number_len) + 2 * c.dim * length * number_len
        # The decoder's self-attention and feed-forward part see the number tokens only.
        others = (4 * square + feed_forward) * number_len + 2 * c.dim * number_len**2
        decoder = c.n_decoder_layers * (cross_attention + others) + c.dim * c.number_vocab_size * number_len
        return 6 * (encoder + decoder)  # a multiplication and an addition, once forward and twice backward


def _attention_mask(padding_mask: Tensor | None) -> Tensor | None:
    """(B, 1, 1, T) boolean mask of the keys that a query attends to, from a padding mask (B, T)."""
    return None if padding_mask is None else padding_mask[:, None, None]
