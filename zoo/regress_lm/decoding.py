"""Numbers from an EncoderDecoder under the grammar of their vocabulary: samples, their law, and all of it.

At each position the model's probabilities are renormalized over the tokens that the grammar's table allows there; the
product over the positions is the law that `sample` draws from at temperature 1, that `log_prob` evaluates and that
`enumerate_law` lists. Spelling is a walk down a tree of prefixes. A text's memory is projected to keys and values once;
a prefix is computed once, however many samples share it, and attends to the keys and values of its ancestors.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.regress_lm.model import EncoderDecoder, KeysValues
from zoo.regress_lm.vocabulary import NumberVocabulary
from zoo.training.random_streams import stream


class Samples(NamedTuple):
    ids: Tensor  # (B, S, L) int64
    log_prob: Tensor  # (B, S) float64, nats, at temperature 1


@torch.no_grad()
def sample(
    model: EncoderDecoder,
    vocabulary: NumberVocabulary,
    tokens: Tensor,
    padding_mask: Tensor | None = None,
    num_samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    rows: Sequence[int] | Tensor | None = None,
) -> Samples:
    """Draws `num_samples` spellings for each text, tokens (B, T), of which `padding_mask` (B, T) are no padding.

    Args:
        temperature: divides the logits; 0 takes the likeliest token at each position.
        top_k: draw among the k likeliest tokens only.
        seed: of the draws. A text's depend on it and on its row alone: not on other texts, padding or `num_samples`.
        rows: (B,) what tells the texts' draws apart; by default their places in the batch.
    """
    for name, value, good in (
        ("num_samples", num_samples, num_samples >= 1),
        ("temperature", temperature, 0 <= temperature < float("inf")),
        ("top_k", top_k, top_k is None or top_k >= 1),
    ):
        if not good:
            raise UserError(f"{name} is out of range: {value}")
    batch, size, device = len(tokens), vocabulary.size, tokens.device
    names = range(batch) if rows is None else [int(row) for row in rows]
    draws = [stream(seed, "sample", row) for row in names]
    shape = num_samples, vocabulary.length
    uniform = torch.stack([torch.rand(shape, generator=draw, dtype=torch.float64) for draw in draws])
    uniform = uniform.to(device)  # (B, S, L)
    node = torch.zeros(batch, num_samples, dtype=torch.int64, device=device)  # the prefix at which each sample stands
    ids: list[Tensor] = []
    log_prob = torch.zeros(batch, num_samples, dtype=torch.float64, device=device)
    with _evaluating(model):
        prefixes = Prefixes.empty(model, vocabulary, tokens, padding_mask)
        for position in range(vocabulary.length):
            if position:
                # Samples that agree so far are one prefix: number the different ones within each text.
                ordered, order = (node * size + ids[-1]).sort(1)
                rank = torch.zeros_like(ordered)
                rank[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
                node = torch.empty_like(rank).scatter_(1, order, rank)  # (B, S)
                chosen = torch.zeros_like(ordered[:, : int(rank.max()) + 1]).scatter_(1, rank, ordered)  # (B, M)
                prefixes = prefixes.grown(chosen // size, chosen % size)
            token = _drawn(_sharpened(prefixes.law, temperature, top_k), node, uniform[..., position])  # (B, S)
            log_prob += prefixes.law.gather(1, _wide(node, size)).gather(2, token[..., None]).squeeze(2)
            ids.append(token)
    return Samples(torch.stack(ids, 2), log_prob)


def log_prob(
    model: EncoderDecoder, vocabulary: NumberVocabulary, tokens: Tensor, padding_mask: Tensor | None, ids: Tensor
) -> Tensor:
    """The log-probability (B,), float64, in nats, of ids (B, L) given tokens (B, T); -inf for what the grammar forbids.

    Gradients flow, and dropout acts in a model that is training.
    """
    logits = model(tokens, ids, padding_mask)  # (B, L, V)
    following = vocabulary.next_state.to(ids.device)
    state, states = torch.zeros_like(ids[:, 0]), []
    for token in ids.unbind(1):
        states.append(state)
        state = following[state, token]
    law = _law(logits, vocabulary, torch.stack(states, 1))  # (B, L, V)
    return law.gather(2, ids[..., None]).squeeze(2).sum(1)


@torch.no_grad()
def enumerate_law(
    model: EncoderDecoder,
    vocabulary: NumberVocabulary,
    tokens: Tensor,
    padding_mask: Tensor | None = None,
    limit: int = 1_000_000,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """All spellings, ids (N, L), and their log-probabilities (B, N), float64, given tokens (B, T).

    Prefixes are expanded by `chunk` at a time, so that memory is bounded. ValueError where N = vocabulary.count
    exceeds `limit`.
    """
    if vocabulary.count > limit:
        raise UserError(
            f"{vocabulary.count:,} spellings are too many to enumerate (the limit is {limit:,}): sample instead"
        )

    def below(prefixes: Prefixes, ids: Tensor, so_far: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """All spellings that begin with ids (M, l), whose log-probabilities are so_far (B, M)."""
        allowed = vocabulary.allowed.to(ids.device)[prefixes.state[0]]  # (M, V): the texts share their tree
        parent, token = allowed.nonzero(as_tuple=True)  # (n,) each
        ids = torch.cat((ids[parent], token[:, None]), 1)  # (n, l + 1)
        so_far = so_far[:, parent] + prefixes.law[:, parent, token]  # (B, n)
        if ids.shape[1] == vocabulary.length:
            yield ids, so_far
            return
        for part in torch.arange(len(parent), device=ids.device).split(chunk):
            grown = prefixes.grown(*(index[part].expand(len(tokens), -1) for index in (parent, token)))
            yield from below(grown, ids[part], so_far[:, part])

    with _evaluating(model):
        empty = torch.zeros(1, 0, dtype=torch.int64, device=tokens.device)
        start = torch.zeros(len(tokens), 1, dtype=torch.float64, device=tokens.device)
        ids, log_probs = zip(*below(Prefixes.empty(model, vocabulary, tokens, padding_mask), empty, start), strict=True)
    return torch.cat(ids), torch.cat(log_probs, 1)


class Prefixes:
    """M prefixes of equal length for each of B texts: their states (B, M), and the law (B, M, V) of what follows."""

    def __init__(
        self,
        model: EncoderDecoder,
        vocabulary: NumberVocabulary,
        text: list[KeysValues],
        padding_mask: Tensor | None,
        last: Tensor,
        state: Tensor,
        past: list[KeysValues] | None,
    ) -> None:
        self.model, self.vocabulary, self.text, self.padding_mask, self.state = model, vocabulary, text, padding_mask, state
        logits, self.past = model.spell(last.reshape(-1, 1), text, padding_mask, past)  # (B M, 1, V)
        self.law = _law(logits.view(*state.shape, -1), vocabulary, state)

    @classmethod
    def empty(
        cls, model: EncoderDecoder, vocabulary: NumberVocabulary, tokens: Tensor, padding_mask: Tensor | None
    ) -> "Prefixes":
        """The one prefix that all spellings share; token 0 stands for it."""
        text = model.read(model.encode(tokens, padding_mask))
        nothing = torch.zeros_like(tokens[:, :1])
        return cls(model, vocabulary, text, padding_mask, nothing, nothing, None)

    def grown(self, parent: Tensor, token: Tensor) -> "Prefixes":
        """Prefixes `parent` (B, M'), each with one more token (B, M')."""
        state = self.vocabulary.next_state.to(token.device)[self.state.gather(1, parent), token]
        first = torch.arange(len(parent), device=parent.device)[:, None] * self.state.shape[1]
        at = (first + parent).flatten()  # (B M',)
        past = [(keys[at], values[at]) for keys, values in self.past]
        return Prefixes(self.model, self.vocabulary, self.text, self.padding_mask, token, state, past)


def _law(logits: Tensor, vocabulary: NumberVocabulary, state: Tensor) -> Tensor:
    """Log-probabilities, float64, of logits (..., V) over what the grammar allows in states (...)."""
    allowed = vocabulary.allowed.to(logits.device)[state]
    return logits.double().masked_fill(~allowed, -torch.inf).log_softmax(-1)


def _sharpened(law: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """The probabilities (..., V) to draw with, of log-probabilities (..., V)."""
    best = law.topk(1 if temperature == 0 else min(top_k or law.shape[-1], law.shape[-1]), -1)
    kept = torch.full_like(law, -torch.inf).scatter_(-1, best.indices, best.values)
    return (kept / (temperature or 1)).softmax(-1)


def _drawn(probs: Tensor, node: Tensor, uniform: Tensor) -> Tensor:
    """A token (B, S) for each sample, at `node` (B, S) of probs (B, M, V), by the inverse of the distribution function
    at `uniform` (B, S) in [0, 1)."""
    mass = probs.cumsum(-1).gather(1, _wide(node, probs.shape[-1]))  # (B, S, V)
    # In (0, total], and so never at a token of probability 0.
    at = (1 - uniform[..., None]) * mass[..., -1:]
    return torch.searchsorted(mass, at).squeeze(-1)


def _wide(node: Tensor, size: int) -> Tensor:
    return node[..., None].expand(-1, -1, size)  # (B, S, V)


@contextmanager
def _evaluating(model: EncoderDecoder) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
