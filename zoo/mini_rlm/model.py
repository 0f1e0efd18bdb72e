"""Mini-RLM's network: a short text, or the numbers that stand in it, to a few outputs.

Characters are embedded, read by an LSTM (Hochreiter & Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735)
or by a pre-norm transformer with rotary positions (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), pooled
into one vector and mapped to the outputs; or the numbers go through a perceptron. Padding is told by a mask: it is
never read, attended to or pooled, so that a row's outputs are its own, whatever stands beside it in the batch.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zoo.errors import UserError
from zoo.layers import Attention, FeedForward, RMSNorm, RotaryEmbedding

Encoder = Literal["lstm", "transformer", "mlp"]
Pooling = Literal["mean", "cls", "last"]


@dataclass
class ReaderConfig:
    """Sizes and kinds. Contradictory settings raise ValueError.

    dim is the width of the embedding and of the transformer, or of the mlp's hidden layers; hidden_dim the width of
    each direction of the LSTM; head_dim that of the hidden layer between the pooled text and the outputs, 0 for none.
    dropout acts between the LSTM's layers, on the transformer's residual branches and on the pooled text, not on the
    embeddings, which spell numbers. n_heads, max_positions and rope_theta are the transformer's alone.
    """

    encoder: Encoder = "lstm"
    pooling: Pooling = "mean"
    vocab_size: int = 99
    n_features: int = 0
    outputs: int = 1
    dim: int = 64
    hidden_dim: int = 64
    head_dim: int = 64
    n_layers: int = 2
    n_heads: int = 4
    bidirectional: bool = True
    dropout: float = 0.0
    max_positions: int = 4096
    rope_theta: float = 100.0

    def __post_init__(self) -> None:
        for name, kinds in (("encoder", Encoder), ("pooling", Pooling)):
            if getattr(self, name) not in get_args(kinds):
                raise UserError(f"{name} is one of {', '.join(get_args(kinds))}, not {getattr(self, name)!r}")
        for name in ("vocab_size", "outputs", "dim", "hidden_dim", "n_layers", "n_heads", "max_positions"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must lie in [0, 1), not {self.dropout}")
        if self.encoder == "transformer" and self.dim % (2 * self.n_heads):
            raise UserError(f"dim {self.dim} does not divide into n_heads {self.n_heads} of even width")
        if self.encoder == "lstm" and self.pooling == "cls" and not self.bidirectional:
            raise UserError("pooling cls stands before the text, where an LSTM has read nothing: set bidirectional")
        if self.encoder == "mlp" and not self.n_features:
            raise UserError("encoder mlp reads the numbers in a text: set n_features to how many there are")


class Reader(nn.Module):
    """Tokens (B, T), or the numbers in the texts (B, F), to outputs (B, O), by ReaderConfig's sizes."""

    def __init__(self, config: ReaderConfig) -> None:
        super().__init__()
        self.config = c = config
        self.dropout = nn.Dropout(c.dropout)
        if c.encoder == "mlp":
            self.mlp = perceptron(c.n_features, *[c.dim] * c.n_layers, c.outputs)
            return
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        nn.init.normal_(self.embedding.weight, std=0.5)
        if c.pooling == "cls":
            self.cls = nn.Parameter(0.5 * torch.randn(c.dim))
        self.encoder = LSTM(c) if c.encoder == "lstm" else Transformer(c)
        hidden = [c.head_dim] if c.head_dim else []
        self.head = perceptron(self.encoder.width, *hidden, c.outputs)

    def forward(self, tokens: Tensor, padding_mask: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """(B, O). `padding_mask` (B, T) is True at tokens and False at the padding after them; None: there is none."""
        if self.config.encoder == "mlp":
            return self.mlp(features)
        x = self.embedding(tokens)  # (B, T, dim)
        if self.config.pooling == "cls":  # one more place, before the text
            x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1)  # (B, 1 + T, dim)
            padding_mask = None if padding_mask is None else nn.functional.pad(padding_mask, (1, 0), value=True)
        lengths = tokens.new_full((len(x),), x.shape[1]) if padding_mask is None else padding_mask.sum(1)  # (B,)
        states = self.encoder(x, padding_mask, lengths)  # (B, T, width)
        return self.head(self.dropout(self.pool(states, padding_mask, lengths)))

    def pool(self, states: Tensor, padding_mask: Tensor | None, lengths: Tensor) -> Tensor:
        """States (B, T, width) to one vector a row (B, width)."""
        if self.config.pooling == "cls":
            return states[:, 0]
        if self.config.pooling == "mean":
            kept = states if padding_mask is None else states * padding_mask[..., None]
            return kept.sum(1) / lengths[:, None]
        last = states[torch.arange(len(states), device=states.device), lengths - 1]
        if self.config.encoder == "lstm" and self.config.bidirectional:  # what reads backwards ends at the first token
            forward, backward = last.chunk(2, dim=-1)[0], states[:, 0].chunk(2, dim=-1)[1]
            return torch.cat([forward, backward], dim=-1)
        return last

    def flops(self, length: int) -> float:
        """Floating-point operations of one training sample of so many tokens, forward and backward."""
        lookups = {"embedding.weight", "cls"}
        active = sum(p.numel() for name, p in self.named_parameters() if name not in lookups)
        if self.config.encoder == "mlp":
            return 6 * active
        attention = 12 * self.config.n_layers * self.config.dim * length**2
        return 6 * active * length + (attention if self.config.encoder == "transformer" else 0)


def perceptron(*widths: int) -> nn.Sequential:
    """Linear maps from one width to the next, a smooth kink between any two."""
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*layers[:-1])


class LSTM(nn.Module):
    """x (B, T, dim) to states (B, T, width): rows are packed, so that neither direction steps over padding."""

    def __init__(self, c: ReaderConfig) -> None:
        super().__init__()
        between = c.dropout if c.n_layers > 1 else 0.0
        self.lstm = nn.LSTM(
            c.dim, c.hidden_dim, c.n_layers, batch_first=True, bidirectional=c.bidirectional, dropout=between
        )
        self.width = c.hidden_dim * (1 + c.bidirectional)

    def forward(self, x: Tensor, padding_mask: Tensor | None, lengths: Tensor) -> Tensor:
        if padding_mask is None:
            return self.lstm(x)[0]
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0]


class Transformer(nn.Module):
    """x (B, T, dim) to normed states (B, T, dim): every token sees every real token of its row.

    A text beyond max_positions raises ValueError; none is ever cut.
    """

    def __init__(self, c: ReaderConfig) -> None:
        super().__init__()
        self.width = c.dim
        self.rotary = RotaryEmbedding(c.dim // c.n_heads, c.max_positions, c.rope_theta)
        self.layers = nn.ModuleList(TransformerLayer(c) for _ in range(c.n_layers))
        self.norm = RMSNorm(c.dim)

    def forward(self, x: Tensor, padding_mask: Tensor | None, lengths: Tensor) -> Tensor:
        seen = torch.ones(1, x.shape[1], dtype=torch.bool, device=x.device) if padding_mask is None else padding_mask
        for layer in self.layers:
            x = layer(x, self.rotary, seen[:, None, None])
        return self.norm(x)


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, c: ReaderConfig) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = RMSNorm(c.dim), RMSNorm(c.dim)
        self.attention = Attention(c.dim, c.n_heads, c.n_heads)
        self.feed_forward = FeedForward(c.dim, 8 * c.dim // 3)
        self.dropout = nn.Dropout(c.dropout)
        for name, parameter in self.named_parameters():
            if name.endswith(("wqkv.weight", "wo.weight", "w13.weight", "w2.weight")):
                nn.init.normal_(parameter, std=0.05)

    def forward(self, x: Tensor, rotary: RotaryEmbedding, seen: Tensor) -> Tensor:
        """x (B, T, dim) -> (B, T, dim), where `seen` (B or 1, 1, 1, T) says which keys there are."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, mask=seen))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))
