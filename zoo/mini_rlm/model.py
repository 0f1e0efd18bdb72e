"""MiniRLM's network: a short text, or the numbers in it, to a few outputs.

Token embeddings pass through an LSTM (Hochreiter & Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735) or a
pre-norm transformer with rotary positions (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), are pooled into one
vector and mapped to the outputs. Alternatively the numbers in the text pass through a multilayer perceptron. A mask
marks padding, which is neither processed nor pooled: the outputs of a row do not depend on the other rows of its batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from zoo.errors import UserError, check_choice, check_counts, check_positive, check_probability
from zoo.layers import Attention, FeedForward, RMSNorm, RotaryEmbedding

Encoder = Literal["lstm", "transformer", "mlp"]
Pooling = Literal["mean", "cls", "last"]


@dataclass
class MiniRLMConfig:
    """Sizes and kinds of a `MiniRLMNetwork`. Contradictory settings raise UserError.

    Args:
        encoder: "lstm" or "transformer" process the text's tokens, "mlp" the numbers in the text.
        pooling: how the states of a text become one vector: the "mean" over its tokens, the state of a trained vector
            in front of the text ("cls"), or the state of the "last" token. Without effect for "mlp".
        vocab_size: number of token ids.
        n_features: F, how many numbers a text contains, for encoder=mlp.
        outputs: number of outputs.
        dim: width of the embedding and of the transformer, or of the hidden layers of the mlp; at least 1.
        hidden_dim: width of each direction of the LSTM, at least 1.
        readout_dim: width of the hidden layer between the pooled text and the outputs, at least 0; 0 for none.
        n_layers: layers of the encoder, at least 1.
        n_heads: attention heads of the transformer; they divide dim into even parts.
        bidirectional: whether the LSTM also runs from the end of the text to its start.
        dropout: probability, from 0 to below 1, between the LSTM's layers, on the transformer's residual branches and
            on the pooled text. Not on embeddings, because they carry the digits of numbers.
        max_seq_len: longest text in tokens that the transformer accepts, the cls vector included; at least 1.
        rope_theta: base of the transformer's rotary frequencies; positive.
    """

    encoder: Encoder = "lstm"
    pooling: Pooling = "mean"
    vocab_size: int = 99
    n_features: int = 0
    outputs: int = 1
    dim: int = 64
    hidden_dim: int = 64
    readout_dim: int = 64
    n_layers: int = 2
    n_heads: int = 4
    bidirectional: bool = True
    dropout: float = 0.0
    max_seq_len: int = 4096
    rope_theta: float = 100.0

    def __post_init__(self) -> None:
        # Kinds must be known, sizes at least 1.
        for name, kinds in (("encoder", Encoder), ("pooling", Pooling)):
            check_choice(name, getattr(self, name), get_args(kinds))
        sizes = ("vocab_size", "outputs", "dim", "hidden_dim", "n_layers", "n_heads", "max_seq_len")
        check_counts(**{name: getattr(self, name) for name in sizes})
        check_counts(0, n_features=self.n_features, readout_dim=self.readout_dim)
        check_probability("dropout", self.dropout)
        check_positive("rope_theta", self.rope_theta)
        if self.encoder == "transformer" and self.dim % (2 * self.n_heads):
            raise UserError(f"dim {self.dim} is not a multiple of 2 n_heads = {2 * self.n_heads}")
        if self.encoder == "lstm" and self.pooling == "cls" and not self.bidirectional:
            raise UserError(
                "pooling=cls comes before the text, where a forward LSTM has read nothing: set bidirectional"
            )
        if self.encoder == "mlp" and not self.n_features:
            raise UserError(
                "encoder=mlp needs the numbers in the texts: set n_features to how many there are, or on the command "
                "line --data.features true"
            )


class MiniRLMNetwork(nn.Module):
    """Tokens (B, T), or the numbers in the texts (B, F), to outputs (B, O)."""

    def __init__(self, config: MiniRLMConfig) -> None:
        super().__init__()
        self.config = c = config
        self.dropout = nn.Dropout(c.dropout)
        if c.encoder == "mlp":
            self.mlp = multilayer_perceptron(c.n_features, *[c.dim] * c.n_layers, c.outputs)
            return
        # Embedding, encoder, and a readout from the pooled state to the outputs.
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        nn.init.normal_(self.embedding.weight, std=0.5)
        if c.pooling == "cls":
            self.cls = nn.Parameter(0.5 * torch.randn(c.dim))
        self.encoder = LSTM(c) if c.encoder == "lstm" else Transformer(c)
        hidden = [c.readout_dim] if c.readout_dim else []
        self.head = multilayer_perceptron(self.encoder.width, *hidden, c.outputs)

    def forward(
        self,
        tokens: Tensor,
        padding_mask: Tensor | None = None,
        features: Tensor | None = None,
        host_lengths: list[int] | None = None,
    ) -> Tensor:
        """Outputs (B, O) of tokens (B, T), or of features (B, F) for encoder=mlp.

        Args:
            tokens: ids.
            padding_mask: (B, T), True at tokens and False at the padding after them; None means no padding.
            features: for encoder=mlp.
            host_lengths: B numbers of tokens in the rows, where the caller knows them: the LSTM needs them on the CPU,
                and would otherwise wait for the device to read them from the mask.
        """
        if self.config.encoder == "mlp":
            return self.mlp(features)
        x = self.embedding(tokens)  # (B, T, dim)
        # The cls vector becomes one more position in front of the text.
        if self.config.pooling == "cls":
            x = torch.cat([self.cls.expand(x.shape[0], 1, -1), x], dim=1)  # (B, 1 + T, dim)
            padding_mask = None if padding_mask is None else nn.functional.pad(padding_mask, (1, 0), value=True)
        # Encode all positions, pool the states at tokens, and map the pooled state to the outputs.
        lengths = tokens.new_full((len(x),), x.shape[1]) if padding_mask is None else padding_mask.sum(1)  # (B,)
        if host_lengths is not None and self.config.pooling == "cls":
            host_lengths = [length + 1 for length in host_lengths]
        states = self.encoder(x, padding_mask, lengths, host_lengths)  # (B, T, width)
        return self.head(self.dropout(self.pool(states, padding_mask, lengths)))

    def pool(self, states: Tensor, padding_mask: Tensor | None, lengths: Tensor) -> Tensor:
        """One vector per row (B, width) from states (B, T, width) and the rows' lengths (B,)."""
        if self.config.pooling == "cls":
            return states[:, 0]
        if self.config.pooling == "mean":
            # The mean over tokens: padding counts neither in the sum nor in the length.
            masked = states if padding_mask is None else states * padding_mask[..., None]
            return masked.sum(1) / lengths[:, None]
        last = states[torch.arange(states.shape[0], device=states.device), lengths - 1]  # (B, width)
        # The LSTM's backward direction ends at the first token.
        if self.config.encoder == "lstm" and self.config.bidirectional:
            forward, backward = last.chunk(2, dim=-1)[0], states[:, 0].chunk(2, dim=-1)[1]
            return torch.cat([forward, backward], dim=-1)
        return last

    def flops(self, length: int) -> float:
        """Floating-point operations of training on one text of `length` tokens, forward and backward."""
        # Two operations per multiplied weight forward and four backward; embeddings are only looked up.
        lookups = {"embedding.weight", "cls"}
        active = sum(p.numel() for name, p in self.named_parameters() if name not in lookups)
        if self.config.encoder == "mlp":
            return 6 * active
        # The encoder's weights are multiplied at each position, those of the readout once, with the pooled state.
        readout = sum(p.numel() for p in self.head.parameters())
        length += self.config.pooling == "cls"
        attention = (
            12 * self.config.n_layers * self.config.dim * length**2 if self.config.encoder == "transformer" else 0
        )
        return 6 * (active - readout) * length + 6 * readout + attention


def multilayer_perceptron(*widths: int) -> nn.Sequential:
    """Linear layers from one width to the next, with SiLU between them."""
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.SiLU())]
    return nn.Sequential(*layers[:-1])


class LSTM(nn.Module):
    """x (B, T, dim) to states (B, T, width). Rows are packed, so that neither direction processes padding."""

    def __init__(self, c: MiniRLMConfig) -> None:
        super().__init__()
        layer_dropout = c.dropout if c.n_layers > 1 else 0.0
        self.lstm = nn.LSTM(
            c.dim, c.hidden_dim, c.n_layers, batch_first=True, bidirectional=c.bidirectional, dropout=layer_dropout
        )
        self.width = c.hidden_dim * (1 + c.bidirectional)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.parameters()).dtype

    def forward(
        self, x: Tensor, padding_mask: Tensor | None, lengths: Tensor, host_lengths: list[int] | None = None
    ) -> Tensor:
        # On a CPU, autocast would choose oneDNN's LSTM in 16 bits, which many CPUs do not have: use the weights' dtype.
        if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self._run(x.to(self.dtype), padding_mask, lengths, host_lengths)
        return self._run(x, padding_mask, lengths, host_lengths)

    def _run(self, x: Tensor, padding_mask: Tensor | None, lengths: Tensor, host_lengths: list[int] | None) -> Tensor:
        if padding_mask is None:
            return self._lstm(x)
        # Packing skips the padding; unpacking puts zeros there.
        if host_lengths is None or x.device.type == "cpu":
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            return self._unpacked(packed, x.shape[1])
        # The same on a GPU without waiting for it: the rows are sorted there by the lengths that both sides know.
        order = lengths.argsort(descending=True, stable=True)  # (B,)
        packed = pack_padded_sequence(x.index_select(0, order), sorted(host_lengths, reverse=True), batch_first=True)
        return self._unpacked(packed, x.shape[1]).index_select(0, order.argsort())

    def _unpacked(self, packed: PackedSequence, length: int) -> Tensor:
        """States (B, length, width) of packed rows."""
        return pad_packed_sequence(self._lstm(packed), batch_first=True, total_length=length)[0]

    def _lstm(self, x: Any) -> Any:
        """States of x, both a tensor or both a PackedSequence; 16-bit weights on a CPU without oneDNN."""
        if self.dtype.itemsize < 4 and x.data.device.type == "cpu":
            with _without_onednn():
                return self.lstm(x)[0]
        return self.lstm(x)[0]


@contextmanager
def _without_onednn() -> Iterator[None]:
    """Compute by torch's own kernels on a CPU."""
    was_enabled = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = was_enabled


class Transformer(nn.Module):
    """x (B, T, dim) to normed states (B, T, dim): every token attends to all tokens of its row, padding excepted.

    A text longer than max_seq_len raises UserError; it is never truncated.
    """

    def __init__(self, c: MiniRLMConfig) -> None:
        super().__init__()
        self.width = c.dim
        self.rotary = RotaryEmbedding(c.dim // c.n_heads, c.max_seq_len, c.rope_theta)
        self.layers = nn.ModuleList(TransformerLayer(c) for _ in range(c.n_layers))
        self.norm = RMSNorm(c.dim)

    def forward(
        self, x: Tensor, padding_mask: Tensor | None, lengths: Tensor, host_lengths: list[int] | None = None
    ) -> Tensor:
        # Keys to attend to: all tokens that are not padding.
        mask = torch.ones(1, x.shape[1], dtype=torch.bool, device=x.device) if padding_mask is None else padding_mask
        for layer in self.layers:
            x = layer(x, self.rotary, mask[:, None, None])
        return self.norm(x)


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, c: MiniRLMConfig) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = RMSNorm(c.dim), RMSNorm(c.dim)
        self.attention = Attention(c.dim, c.n_heads, c.n_heads, causal=False)
        self.feed_forward = FeedForward(c.dim, 8 * c.dim // 3)
        self.dropout = nn.Dropout(c.dropout)
        for name, parameter in self.named_parameters():
            if name.endswith(("wqkv.weight", "wo.weight", "w13.weight", "w2.weight")):
                nn.init.normal_(parameter, std=0.05)

    def forward(self, x: Tensor, rotary: RotaryEmbedding, mask: Tensor) -> Tensor:
        """x (B, T, dim) -> (B, T, dim); mask (B or 1, 1, 1, T) is True at the keys to attend to."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, mask=mask))
        return x + self.dropout(self.feed_forward(self.ffn_norm(x)))
