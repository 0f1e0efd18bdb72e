"""Classification head: hidden states of a text, pooled to one vector and mapped to one logit per class.

Radford et al. 2018, "Improving language understanding by generative pre-training". The model is causal, so rows padded
on the right need no attention mask: no token attends to the padding behind it.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from zoo.errors import check_choice, check_probability

Pooling = Literal["last", "mean", "attention"]


class ClassifierHead(nn.Module):
    """Hidden states (B, T, dim) to logits (B, C): pooling over tokens, dropout, a linear map.

    Args:
        dim: width of the hidden states.
        n_classes: number of classes C.
        pooling: "last", the state of the last token; "mean", the mean over tokens; or "attention", a mean weighted by
            the softmax of the products of the states with a trained vector.
        dropout: dropout probability of the pooled vector, in [0, 1).
    """

    def __init__(self, dim: int, n_classes: int, pooling: Pooling = "last", dropout: float = 0.0) -> None:
        super().__init__()
        check_choice("pooling", pooling, get_args(Pooling))
        check_probability("head_dropout", dropout)
        self.pooling = pooling
        if pooling == "attention":
            self.query = nn.Parameter(torch.zeros(dim))  # zeros: training starts from the mean
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, n_classes)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Logits (B, C) of hidden states (B, T, dim)."""
        return self.linear(self.dropout(self.pool(hidden, padding_mask)))

    def pool(self, hidden: Tensor, padding_mask: Tensor | None) -> Tensor:
        """One vector (B, dim) per row; `padding_mask` (B, T) is True at tokens, or None if no row is padded."""
        if self.pooling == "last":
            if padding_mask is None:
                return hidden[:, -1]
            return hidden[torch.arange(hidden.shape[0], device=hidden.device), padding_mask.sum(1) - 1]
        # Equal weights give the mean.
        weights = hidden @ self.query if self.pooling == "attention" else hidden.new_zeros(hidden.shape[:2])  # (B, T)
        if padding_mask is not None:
            weights = weights.masked_fill(~padding_mask, -torch.inf)
        return (weights.softmax(-1)[:, None] @ hidden).squeeze(1)
