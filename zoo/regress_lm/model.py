"""RegressLM's encoder-decoder: text in, the tokens of its numbers out.

Akhauri et al. 2025, https://arxiv.org/abs/2506.21718; Song & Bahri 2025, https://arxiv.org/abs/2501.19383; sizes and
parameter names as in https://github.com/google-deepmind/regress-lm, so that its weights load. Both halves are
pre-norm. The encoder turns queries and keys by rotary positions and ends in a norm; the decoder adds sinusoidal
positions and ends in none. Departures:
- padding is told by a mask, not by an id, and where no row is padded there is no mask at all;
- each decoder layer draws its own initial weights (upstream's begin as copies of one);
- the decoder shifts the numbers' tokens itself and computes no position after the last of them.
What costs less here, for the same answers:
- a text's numbers, where there are many (samples), are further queries of its one set of keys and values;
- where there are few, the heads' queries are taken into the memory's space instead, and it is projected to no keys
  and values at all: (W_q x) . (W_k m) = (W_k^T W_q x) . m;
- where the batch has more tokens than the vocabulary, the first layer projects the vocabulary.
"""

import math
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.layers import RotaryEmbedding
from zoo.layers.rotary import rotate

KeysValues = tuple[Tensor, Tensor]  # (B, H, T, hd) each
PIECE = 512  # tokens whose hidden layer a CPU's cache holds


@dataclass
class RegressLMConfig:
    """Sizes: of the text's vocabulary and the numbers', the tokens that spell a row's numbers, the layers.

    dropout acts inside the feed-forward layers, as upstream's; residual_dropout on what each attention and each
    feed-forward adds. Contradictory settings raise ValueError.
    """

    vocab_size: int
    number_vocab_size: int
    number_len: int
    dim: int = 128
    n_encoder_layers: int = 2
    n_decoder_layers: int = 2
    n_heads: int = 8
    hidden_mult: int = 4
    dropout: float = 0.0
    residual_dropout: float = 0.0
    max_input_len: int = 2048

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if "dropout" in name:
                if not 0 <= value < 1:
                    raise UserError(f"{name} must lie in [0, 1), not {value}")
            elif value < 1:
                raise UserError(f"{name} must be at least 1, not {value}")
        if self.dim % (2 * self.n_heads):
            raise UserError(f"dim {self.dim} must divide into n_heads {self.n_heads} heads of even size")


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """zoo.layers.rotary's rotate: outside a compiler, which fuses it, in one multiplication of complex numbers."""
    if torch.compiler.is_compiling():
        return rotate(x, cos, sin)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # (..., hd / 2)
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).type_as(x)  # (..., hd)


class Attention(nn.Module):
    """The decoder's attention: projections with torch.nn.MultiheadAttention's names, rows q, k, v in one matrix."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * dim, dim)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, x: Tensor, parts: slice) -> tuple[Tensor, ...]:
        """x (B, T, dim) through `parts` of (q, k, v), each (B, H, T, hd)."""
        weight = self.in_proj_weight.unflatten(0, (3, -1))[parts].flatten(0, 1)
        bias = self.in_proj_bias.unflatten(0, (3, -1))[parts].flatten()
        heads = F.linear(x, weight, bias).unflatten(-1, (-1, self.n_heads, x.shape[-1] // self.n_heads))
        return heads.permute(2, 0, 3, 1, 4).unbind()

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
        """query (N, H, L, hd) over keys and values (N, H, T, hd) -> (N, L, dim)."""
        mixed = F.scaled_dot_product_attention(query, keys, values, **options)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))  # (N, L, dim)

    def ask(self, query: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """query (B, H, L, hd) over the keys and values of memory (B, T, dim), without computing them -> (B, L, dim).

        All heads look at the one memory. The keys' bias adds the same to all scores of a query, so it has no effect.
        """
        _, key, value = self.in_proj_weight.view(3, self.n_heads, -1, memory.shape[-1])  # (H, hd, dim) each
        asking = (query @ key).flatten(1, 2)[:, None]  # (B, 1, H L, dim)
        heard = F.scaled_dot_product_attention(
            asking, memory[:, None], memory[:, None], attn_mask=mask, scale=query.shape[-1] ** -0.5
        )
        mixed = heard.view(*query.shape[:3], -1) @ value.mT  # (B, H, L, hd)
        bias = self.in_proj_bias.view(3, self.n_heads, 1, -1)[2]  # (H, 1, hd): weights of attention sum to 1
        return self.out_proj((mixed + bias).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """linear2(dropout(relu(linear1 x))), the part that the layers of both halves share."""

    def __init__(self, config: RegressLMConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.dim, config.hidden_mult * config.dim)
        self.linear2 = nn.Linear(config.hidden_mult * config.dim, config.dim)
        self.dropout, self.residual = nn.Dropout(config.dropout), nn.Dropout(config.residual_dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        """x (N, L, dim), on a CPU piece by piece: a long text's hidden layer would take more memory than all else."""
        if x.shape[:2].numel() > PIECE and x.device.type == "cpu" and not torch.compiler.is_compiling():
            return torch.cat([self.piece(part) for part in x.flatten(0, 1).split(PIECE)]).view_as(x)
        return self.piece(x)

    def piece(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x), inplace=True)))


class EncoderLayer(FeedForward):
    """x + attention(norm1(x)), then x + feed_forward(norm2(x)); every token sees every real token."""

    def __init__(self, config: RegressLMConfig) -> None:
        super().__init__(config)
        self.n_heads, dim = config.n_heads, config.dim
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of norm1(x), (..., dim) -> (..., 3 dim)."""
        parts = self.q_proj, self.k_proj, self.v_proj
        return F.linear(self.norm1(x), torch.cat([p.weight for p in parts]), torch.cat([p.bias for p in parts]))

    def forward(self, x: Tensor, projected: Tensor, rotary: RotaryEmbedding, mask: Tensor | None) -> Tensor:
        cos, sin = rotary.cos[: x.shape[1], None], rotary.sin[: x.shape[1], None]  # (T, 1, hd / 2)
        query, key, value = projected.unflatten(-1, (3, self.n_heads, -1)).unbind(2)  # (B, T, H, hd) each
        query, key = turned(query, cos, sin), turned(key, cos, sin)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # (B, H, T, hd) each
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.residual(self.out_proj(mixed.transpose(1, 2).flatten(2)))  # (B, T, dim)
        return x + self.residual(self.feed_forward(self.norm2(x)))


class Encoder(nn.Module):
    """Tokens (B, T) to memory (B, T, dim)."""

    def __init__(self, config: RegressLMConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.rotary = RotaryEmbedding(config.dim // config.n_heads, config.max_input_len)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_encoder_layers))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        x = self.embedding(tokens)  # (B, T, dim)
        layers: Any = self.layers
        for number, layer in enumerate(layers):
            if number == 0 and tokens.numel() > self.embedding.num_embeddings:
                projected = F.embedding(tokens, layer.project(self.embedding.weight))  # (B, T, 3 dim)
            else:
                projected = layer.project(x)
            x = layer(x, projected, self.rotary, mask)
        return self.norm(x)


class DecoderLayer(FeedForward):
    """Self-attention to the number so far, attention to the text, feed-forward, each x + f(norm(x))."""

    def __init__(self, config: RegressLMConfig) -> None:
        super().__init__(config)
        self.self_attn = Attention(config.dim, config.n_heads)
        self.multihead_attn = Attention(config.dim, config.n_heads)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.dim) for _ in range(3))

    def forward(
        self, x: Tensor, text: Tensor | KeysValues, mask: Tensor | None, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """x (N, L, dim) and the keys and values of all positions so far, (N, H, past + L, hd) each.

        `text` is a memory (B, T, dim) or the keys and values of one. N is B, or a multiple M of it: then rows
        b M ... b M + M - 1 ask text b. With a past, L is 1.
        """
        query, *now = self.self_attn.project(self.norm1(x), slice(0, 3))  # (N, H, L, hd) each
        keys, values = now if past is None else (torch.cat(pair, 2) for pair in zip(past, now, strict=True))
        x = x + self.residual(self.self_attn(query, keys, values, is_causal=past is None and x.shape[1] > 1))
        batch = len(text if isinstance(text, Tensor) else text[0])
        asking = self.norm2(x).view(batch, -1, x.shape[-1])  # (B, M L, dim)
        (query,) = self.multihead_attn.project(asking, slice(0, 1))  # (B, H, M L, hd)
        if isinstance(text, Tensor):
            heard = self.multihead_attn.ask(query, text, mask)
        else:
            heard = self.multihead_attn(query, *text, attn_mask=mask)
        x = x + self.residual(heard.view_as(x))
        return x + self.residual(self.feed_forward(self.norm3(x))), (keys, values)


class Decoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: RegressLMConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.n_decoder_layers))


class EncoderDecoder(nn.Module):
    """Tokens of texts (B, T) and of their numbers (B, L) to logits (B, L, V) of the numbers' tokens."""

    positions: Tensor

    def __init__(self, config: RegressLMConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.tgt_tok_emb = nn.Embedding(config.number_vocab_size, config.dim)
        self.decoder = Decoder(config)
        self.generator = nn.Linear(config.dim, config.number_vocab_size)
        rate = torch.exp(torch.arange(0, config.dim, 2) * (-math.log(10000.0) / config.dim))
        angles = torch.arange(config.number_len)[:, None] * rate  # (L, dim / 2)
        # Sine and cosine take turns: Vaswani et al. 2017, section 3.5.
        table = torch.stack((angles.sin(), angles.cos()), -1).flatten(1)  # (L, dim)
        self.register_buffer("positions", table, persistent=False)

    def forward(self, tokens: Tensor, numbers: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Logits (B, L, V): position l predicts numbers[:, l] from numbers[:, :l] and the text.

        `numbers` (B, L) may be the beginning of the spelling only. `padding_mask` (B, T) is True at tokens, False at padding.
        """
        memory = self.encode(tokens, padding_mask)  # (B, T, dim)
        few = numbers.shape[1] * self.config.n_heads < self.config.dim  # queries, counted over the heads
        text = [memory] * self.config.n_decoder_layers if few else self.read(memory)
        shifted = F.pad(numbers[:, :-1], (1, 0))  # (B, L): 0 begins every row
        return self.spell(shifted, text, padding_mask)[0]

    def encode(self, tokens: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """The memory (B, T, dim) of tokens (B, T); what stands at padding is of no meaning."""
        if tokens.shape[1] > self.config.max_input_len:
            raise UserError(
                f"{tokens.shape[1]} tokens are more than the model's max_input_len of {self.config.max_input_len}"
            )
        return self.encoder(tokens, _mask(padding_mask))

    def read(self, memory: Tensor) -> list[KeysValues]:
        """The keys and values (B, H, T, hd) of a memory (B, T, dim) for each decoder layer."""
        layers: Any = self.decoder.layers
        return [layer.multihead_attn.project(memory, slice(1, 3)) for layer in layers]

    def spell(
        self,
        inputs: Tensor,
        text: Sequence[Tensor | KeysValues],
        padding_mask: Tensor | None = None,
        past: list[KeysValues] | None = None,
    ) -> tuple[Tensor, list[KeysValues]]:
        """Logits (N, L, V) of what follows each of `inputs` (N, L), and the keys and values so far, by layer.

        `text` has a memory, or what `read` made of it, for each layer. N is B or a multiple of it (see DecoderLayer).
        With the `past` that an earlier call returned, `inputs` (N, 1) stand after it.
        """
        start = 0 if past is None else past[0][0].shape[2]
        x = self.tgt_tok_emb(inputs) + self.positions[start : start + inputs.shape[1]]  # (N, L, dim)
        so_far = []
        for number, layer in enumerate(self.decoder.layers):
            x, present = layer(x, text[number], _mask(padding_mask), None if past is None else past[number])
            so_far.append(present)
        return self.generator(x), so_far

    def flops(self, length: int) -> int:
        """Floating-point operations of training on one text of `length` tokens, forward and backward."""
        c, spelled = self.config, self.config.number_len
        square, ffn = c.dim**2, 2 * c.hidden_mult * c.dim**2
        encoder = c.n_encoder_layers * ((4 * square + ffn) * length + 2 * c.dim * length**2)
        cross = 2 * square * (length + spelled) + 2 * c.dim * length * spelled
        own = (4 * square + ffn) * spelled + 2 * c.dim * spelled**2
        multiplications = encoder + c.n_decoder_layers * (cross + own) + c.dim * c.number_vocab_size * spelled
        return 6 * multiplications  # each multiplied and added, once forward and twice backward


def _mask(padding_mask: Tensor | None) -> Tensor | None:
    """Which keys a query may see, as SDPA takes it."""
    return None if padding_mask is None else padding_mask[:, None, None]  # (B, 1, 1, T)


def load_upstream(
    source: Mapping[str, Any] | str | os.PathLike, max_input_len: int = 2048, n_heads: int = 8, **changes: Any
) -> EncoderDecoder:
    """The model of upstream's weights: a state dict, with or without the prefix `encoder_decoder.`, or a file of one.

    Shapes tell the sizes, but for n_heads and max_input_len, which are in no shape; number_len is that of the stored
    positions unless `changes` names it. ValueError, in one sentence, if the file is damaged or of another model.
    """
    content: Any = source
    if not isinstance(source, Mapping):
        try:
            content = torch.load(source, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no checkpoint at {source}") from None
        except (pickle.UnpicklingError, RuntimeError, EOFError):
            raise UserError(f"{source} is damaged, or holds more than tensors: torch cannot read it safely") from None
    state = content.get("model_state", content)  # its Trainer's files keep the optimizer beside it
    weights: dict[str, Tensor] = {name.removeprefix("encoder_decoder."): state[name] for name in state}
    positions = weights.pop("decoder_positional_encoding.pe", None)  # (1, number_len + 1, dim)
    weights.pop("encoder.rotary_pos_emb.inv_freq", None)
    try:
        number_vocab_size, dim = weights["generator.weight"].shape
        config = {
            "vocab_size": len(weights["encoder.embedding.weight"]),
            "number_vocab_size": number_vocab_size,
            "number_len": 0 if positions is None else positions.shape[1] - 1,
            "dim": dim,
            "n_encoder_layers": sum(name.endswith("q_proj.weight") for name in weights),
            "n_decoder_layers": sum(name.endswith("self_attn.in_proj_weight") for name in weights),
            "hidden_mult": len(weights["decoder.layers.0.linear1.weight"]) // dim,
        }
        model = EncoderDecoder(
            RegressLMConfig(**config | {"max_input_len": max_input_len, "n_heads": n_heads} | changes)
        )
        model.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"these are not the weights of a RegressLM with a plain encoder: {reason}") from None
    return model
