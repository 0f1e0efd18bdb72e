"""A Llama that chooses among classes: by a head on its hidden states, or by the words that it would say next.

Trained (Radford et al. 2018, "Improving language understanding by generative pre-training"): the hidden states of a
text are pooled to one vector, which a linear map turns into a logit for each class. The model being causal, rows may be
padded on the right without a mask inside it: no real token sees the padding.

Zero-shot (Brown et al. 2020, https://arxiv.org/abs/2005.14165): a prompt asks for the class, and each class scores by
log p(its name | the prompt), the sum over all tokens of the name. Optional are the mean in place of the sum, and the
subtraction of what the name scores after the prompt without a text, the classes' prior in the model's eyes (Zhao et al.
2021, https://arxiv.org/abs/2102.09690, with logarithms as in Holtzman et al. 2021, https://arxiv.org/abs/2104.08315).
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.layers import KVCache
from zoo.llama.model import Llama
from zoo.tokenizers import Tokenizer

Pooling = Literal["last", "mean", "attention"]


class Head(nn.Module):
    """Hidden states (B, T, dim) to logits (B, C): pooled over the real tokens, dropout, a linear map.

    Args:
        dim, n_classes: the sizes.
        pooling: the "last" real token's state, their "mean", or a mean that is weighted by "attention", the softmax of
            the states' products with a learnt vector.
        dropout: of the pooled vector.
    """

    def __init__(self, dim: int, n_classes: int, pooling: Pooling = "last", dropout: float = 0.0) -> None:
        super().__init__()
        if pooling not in ("last", "mean", "attention"):
            raise UserError(f"pooling is last, mean or attention, not {pooling!r}")
        if not 0 <= dropout < 1:
            raise UserError(f"head_dropout must lie in [0, 1), not {dropout}")
        self.pooling = pooling
        if pooling == "attention":
            self.query = nn.Parameter(torch.zeros(dim))  # at first the mean
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, n_classes)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return self.linear(self.dropout(self.pooled(hidden, padding_mask)))

    def pooled(self, hidden: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(B, dim); `padding_mask` (B, T) tells tokens from padding, None that there is none."""
        if self.pooling == "last":
            if padding_mask is None:
                return hidden[:, -1]
            return hidden[torch.arange(len(hidden), device=hidden.device), padding_mask.sum(1) - 1]
        weights = hidden @ self.query if self.pooling == "attention" else hidden.new_zeros(hidden.shape[:2])  # (B, T)
        if padding_mask is not None:
            weights = weights.masked_fill(~padding_mask, -torch.inf)
        return (weights.softmax(-1)[:, None] @ hidden).squeeze(1)


def continuations(tokenizer: Tokenizer, end: str, words: Sequence[str]) -> list[list[int]]:
    """The tokens of each word, and of the space before it, after a prompt that ends with `end`.

    Raises:
        ValueError: the prompt ends with a space, or in a token that changes with what follows.
    """
    start = tokenizer.encode(end, bos=False)
    following = [tokenizer.encode(f"{end} {word}", bos=False) for word in words]
    if end.endswith(" ") or any(ids[: len(start)] != start for ids in following):
        raise UserError(
            f"the prompt ends with {end[-12:]!r}, but must with a whole word and no space: that belongs to what follows"
        )
    return [ids[len(start) :] for ids in following]


def left_padded(tokens: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Tokens (B, T) with their padding moved to the left, and how much there is, (B,); None where there is none."""
    if padding_mask is None:
        return tokens, None
    width = tokens.shape[1]
    left_padding = width - padding_mask.sum(1)  # (B,)
    place = (torch.arange(width, device=tokens.device) - left_padding[:, None]) % width  # (B, T)
    return tokens.gather(1, place), left_padding


@torch.no_grad()
def word_scores(
    model: Llama, tokens: Tensor, padding_mask: Tensor | None, words: Sequence[Sequence[int]], normalize: bool = False
) -> Tensor:
    """(B, C): log p(word | prompt) in nats, for prompts (B, T) and C words of any number of tokens.

    Args:
        model: in evaluation mode.
        tokens: the prompts, padded on the right.
        real: (B, T) True at their tokens; None where no row is padded.
        words: the tokens of each word as they follow the prompt.
        normalize: divide by the word's tokens.
    """
    config, (batch, width) = model.config, tokens.shape
    tokens, left_padding = left_padded(tokens, padding_mask)
    longest, weight = width + max(map(len, words)), model.norm.weight
    cache = KVCache(config.n_layers, batch, config.kv_heads, longest, config.head_dim, weight.dtype, weight.device)
    scores = []
    with torch.autocast(tokens.device.type, enabled=False):  # the cache is in the weights' precision
        first = _log_probs(model, model.hidden(tokens, cache, left_padding=left_padding)[:, -1])  # (B, V)
        for word in words:
            ids = torch.tensor(word, device=tokens.device)
            score = first[:, ids[0]]
            if len(word) > 1:  # the columns behind the prompt are written anew for every word
                hidden = model.hidden(ids[:-1].expand(batch, -1), cache, start=width, left_padding=left_padding)  # (B, L - 1, dim)
                score = score + _log_probs(model, hidden).gather(2, ids[1:].expand(batch, -1)[..., None]).sum((1, 2))
            scores.append(score / len(word) if normalize else score)
    return torch.stack(scores, 1)


@torch.no_grad()
def course_scores(model: Llama, tokens: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """(B, C) as CMU's minllama course scores: at the last column, a padding token (0) in all but the longest rows, the
    sum of the log-probabilities of all of a word's tokens as if each were the next."""
    log_probs = _log_probs(model, model.hidden(tokens)[:, -1])  # (B, V)
    return torch.stack([log_probs[:, list(word)].sum(1) for word in words], 1)


def _log_probs(model: Llama, hidden: Tensor) -> Tensor:
    return F.linear(hidden, model.output_weight).float().log_softmax(-1)
