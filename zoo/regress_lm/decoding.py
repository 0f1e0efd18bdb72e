"""Constrained decoding of numbers from an EncoderDecoder: sampling, log-probability, exhaustive enumeration.

At each position the model's logits are divided by the vocabulary's temperature, and its probabilities are renormalised
over the tokens that the vocabulary's automaton allows there: the grammar of number tokens, without the signs and
exponents that no training target has and without numbers outside the targets' extended range. The product over the
positions is the distribution that `sample` draws from at temperature 1, `log_prob` evaluates and `enumerate_all` lists.
Decoding walks a tree of prefixes: a text's memory is projected to keys and values once, and a prefix is computed once
for all samples that share it, attending to the keys and values of its ancestors.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zoo.errors import UserError, check_number
from zoo.generation.decoders import evaluating
from zoo.generation.options import check_sampling, scale_logits
from zoo.layers.cumulative_sum import cumulative_sum
from zoo.regress_lm.model import EncoderDecoder, KeysValues
from zoo.regress_lm.vocabulary import NumberVocabulary
from zoo.training.random_streams import stream

MOST_SAMPLES = 1_000_000
GPU_PREFIXES = 8192  # prefixes of all texts that a GPU decodes in about the time of one


class Samples(NamedTuple):
    """S sampled token sequences for each of B texts."""

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
    """Draw token sequences for each text.

    Args:
        model: the network; dropout is off while it samples.
        vocabulary: the number tokens and their grammar.
        tokens: (B, T) ids of the texts.
        padding_mask: (B, T) boolean, True at tokens; None if no text is padded.
        num_samples: S, sequences per text.
        temperature: divides the logits; 0 takes the most likely token at each position.
        top_k: draw among the k most likely tokens only; None for all.
        seed: seed of the draws. Those of a text depend on the seed and its entry in `rows` only: not on other texts,
            padding or num_samples.
        rows: (B,) numbers that distinguish the texts' draws; by default their places in the batch.

    Raises:
        UserError: an option is out of range.
    """
    # Check the options.
    check_sampling(temperature, top_k, seed=seed, num_samples=num_samples)
    most = f"at most {MOST_SAMPLES:,}: draw more in several calls with other seeds"
    check_number("num_samples", num_samples, most, lambda n: n <= MOST_SAMPLES, whole=True)
    batch, size, device = len(tokens), vocabulary.size, tokens.device
    # One uniform number for each text, sample and position, from the text's own stream.
    row_numbers = range(batch) if rows is None else rows.tolist() if isinstance(rows, Tensor) else rows
    draws = [stream(seed, "sample", int(row)) for row in row_numbers]
    shape = num_samples, vocabulary.length
    uniform = torch.stack([torch.rand(shape, generator=draw, dtype=torch.float64, device="cpu") for draw in draws])
    uniform = uniform.to(device)  # (B, S, L)
    node = torch.zeros(batch, num_samples, dtype=torch.int64, device=device)  # each sample's prefix, by its number
    # Results: the tokens of each position, and the sum of their log-probabilities.
    ids: list[Tensor] = []
    log_prob = torch.zeros(batch, num_samples, dtype=torch.float64, device=device)
    with evaluating(model):
        # Walk the tree of prefixes position by position, all samples of all texts together.
        prefixes = Prefixes.empty(model, vocabulary, tokens, padding_mask)
        for position in range(vocabulary.length):
            if position:
                # Samples of a text that agree so far share a prefix: number the distinct (prefix, token) pairs.
                ordered, order = (node * size + ids[-1]).sort(1)  # (B, S)
                rank = torch.zeros_like(ordered)
                rank[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(1)
                node = torch.empty_like(rank).scatter_(1, order, rank)  # (B, S)
                n_prefixes = _most_prefixes(rank, vocabulary.prefix_counts[position])
                distinct = torch.zeros_like(ordered[:, :n_prefixes]).scatter_(1, rank, ordered)  # (B, M)
                prefixes = prefixes.extend(distinct // size, distinct % size)
            # Draw every sample's next token from the distribution at its prefix.
            probs = _sampling_probs(prefixes.log_probs, temperature, top_k)  # (B, M, V)
            token = _draw(probs, node, uniform[..., position])  # (B, S)
            log_prob += prefixes.log_probs.gather(1, _expand(node, size)).gather(2, token[..., None]).squeeze(2)
            ids.append(token)
    return Samples(torch.stack(ids, 2), log_prob)


def log_prob(
    model: EncoderDecoder, vocabulary: NumberVocabulary, tokens: Tensor, padding_mask: Tensor | None, ids: Tensor
) -> Tensor:
    """Log-probabilities (B,), float64, in nats, of number tokens (B, L) given texts.

    It is -inf for what the automaton forbids, for instance a number far above the largest training target: such a
    number is never sampled. Gradients flow, and dropout is active if the model is in training mode.

    Args:
        model: the network.
        vocabulary: the number tokens and their grammar.
        tokens: (B, T) ids of the texts.
        padding_mask: (B, T) boolean, True at tokens; None if no text is padded.
        ids: (B, L) number tokens; the last numbers of a row may be absent, which is 0 for all their tokens.
    """
    return log_prob_of_logits(model(tokens, ids, padding_mask), vocabulary, ids)


def log_prob_of_logits(logits: Tensor, vocabulary: NumberVocabulary, ids: Tensor) -> Tensor:
    """`log_prob` (B,) of number tokens (B, L) from the model's logits (B, L, V) at all positions."""
    automaton = vocabulary.tables(ids.device).automaton
    log_probs = _allowed_log_probs(logits, vocabulary, automaton.states(ids))  # (B, L, V)
    chosen = log_probs.gather(2, ids[..., None]).squeeze(2)  # (B, L)
    return chosen.masked_fill(vocabulary.is_absent(ids), 0.0).sum(1)


def log_probs_by_temperature(logits: Tensor, vocabulary: NumberVocabulary, ids: Tensor, temperatures: Tensor) -> Tensor:
    """Log-probabilities of each token at each of G temperatures (G,), instead of those of the vocabulary.

    Args:
        logits: (B, L, V) of the model at all positions.
        vocabulary: the number tokens and their automaton.
        ids: (B, L) number tokens.
        temperatures: (G,) divide the logits.

    Returns:
        (B, G, L) float64, nats; -inf for tokens that the automaton forbids.
    """
    automaton = vocabulary.tables(ids.device).automaton
    allowed = automaton.allowed[automaton.states(ids)]  # (B, L, V)
    masked = logits.double().masked_fill(~allowed, -torch.inf)
    parts = [(masked / t).log_softmax(-1).gather(2, ids[..., None]).squeeze(2) for t in temperatures.tolist()]
    return torch.stack(parts, 1)


@torch.no_grad()
def enumerate_all(
    model: EncoderDecoder,
    vocabulary: NumberVocabulary,
    tokens: Tensor,
    padding_mask: Tensor | None = None,
    limit: int = 1_000_000,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """All token sequences (N, L) that the grammar allows, and their log-probabilities (B, N), float64, in nats.

    Args:
        model: the network; dropout is off.
        vocabulary: the number tokens and their grammar; N is `vocabulary.count`.
        tokens: (B, T) ids of the texts.
        padding_mask: (B, T) boolean, True at tokens; None if no text is padded.
        limit: largest N allowed.
        chunk: prefixes that are extended at a time, which bounds the memory.

    Raises:
        UserError: N exceeds the limit.
    """
    # The count is known from the automaton, before anything is computed.
    if vocabulary.count > limit:
        raise UserError(
            f"{vocabulary.count:,} token sequences are too many to enumerate (the limit is {limit:,}): sample instead"
        )

    def descend(prefixes: Prefixes, ids: Tensor, so_far: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """All sequences that start with ids (M, l), whose log-probabilities are so_far (B, M)."""
        # (M, V): the same tree for all texts
        allowed = vocabulary.tables(ids.device).automaton.allowed[prefixes.state[0]]
        parent, token = allowed.nonzero(as_tuple=True)  # (n,) each
        ids = torch.cat((ids[parent], token[:, None]), 1)  # (n, l + 1)
        so_far = so_far[:, parent] + prefixes.log_probs[:, parent, token]  # (B, n)
        # Complete sequences are leaves of the tree; all others are extended, `chunk` prefixes at a time.
        if ids.shape[1] == vocabulary.length:
            yield ids, so_far
            return
        for part in torch.arange(len(parent), device=ids.device).split(chunk):
            extended = prefixes.extend(*(index[part].expand(len(tokens), -1) for index in (parent, token)))
            yield from descend(extended, ids[part], so_far[:, part])

    with evaluating(model):
        # Descend from the empty prefix, whose log-probability is 0.
        empty = torch.zeros(1, 0, dtype=torch.int64, device=tokens.device)
        start = torch.zeros(len(tokens), 1, dtype=torch.float64, device=tokens.device)
        leaves = descend(Prefixes.empty(model, vocabulary, tokens, padding_mask), empty, start)
        ids, log_probs = zip(*leaves, strict=True)
    return torch.cat(ids), torch.cat(log_probs, 1)


class Prefixes:
    """M prefixes of equal length for each of B texts.

    Attributes:
        state: (B, M) grammar state after each prefix.
        log_probs: (B, M, V) float64, log-probabilities of the next token.
        past: keys and values of the prefixes' positions, for each decoder layer.
    """

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
        self.model, self.vocabulary, self.text, self.padding_mask = model, vocabulary, text, padding_mask
        self.state = state
        logits, self.past = model.decode(last.reshape(-1, 1), text, padding_mask, past)  # (B M, 1, V)
        self.log_probs = _allowed_log_probs(logits.view(*state.shape, -1), vocabulary, state)

    @classmethod
    def empty(
        cls, model: EncoderDecoder, vocabulary: NumberVocabulary, tokens: Tensor, padding_mask: Tensor | None
    ) -> "Prefixes":
        """The empty prefix of each text, represented by token 0."""
        text = model.project_memory(model.encode(tokens, padding_mask))
        start = torch.zeros_like(tokens[:, :1])
        return cls(model, vocabulary, text, padding_mask, start, start, None)

    def extend(self, parent: Tensor, token: Tensor) -> "Prefixes":
        """The prefixes with numbers `parent` (B, M'), each with one more token (B, M')."""
        # The automaton's state after the token, and the keys and values of the parent prefix.
        next_state = self.vocabulary.tables(token.device).automaton.next_state
        state = next_state[self.state.gather(1, parent), token]
        first = torch.arange(len(parent), device=parent.device)[:, None] * self.state.shape[1]
        index = (first + parent).flatten()  # (B M',)
        past = [(keys[index], values[index]) for keys, values in self.past]
        return Prefixes(self.model, self.vocabulary, self.text, self.padding_mask, token, state, past)


def _allowed_log_probs(logits: Tensor, vocabulary: NumberVocabulary, state: Tensor) -> Tensor:
    """Log-probabilities, float64, of logits (..., V) in states (...): divided by the temperature, and renormalised over
    the tokens allowed there."""
    automaton, temperature = vocabulary.tables(logits.device)
    scaled = logits.double() / temperature[state][..., None]
    return scaled.masked_fill(~automaton.allowed[state], -torch.inf).log_softmax(-1)


def _most_prefixes(rank: Tensor, count: int) -> int:
    """A number of prefixes that is enough for all texts, given the numbers of the samples' prefixes `rank` (B, S).

    On a GPU a few more prefixes than needed cost less than waiting for the largest number.

    Args:
        rank: from 0.
        count: number of prefixes that the automaton allows.
    """
    most = min(count, rank.shape[1])
    if rank.device.type != "cpu" and len(rank) * most <= GPU_PREFIXES:
        return most
    return int(rank.max()) + 1


def _sampling_probs(log_probs: Tensor, temperature: float, top_k: int | None) -> Tensor:
    """Probabilities (..., V) after temperature and top-k, from log-probabilities (..., V)."""
    # Temperature 0 is a top-1 truncation, after which the temperature does not matter.
    size = log_probs.shape[-1]
    best = log_probs.topk(1 if temperature == 0 else min(top_k or size, size), -1)
    truncated = torch.full_like(log_probs, -torch.inf).scatter_(-1, best.indices, best.values)
    return scale_logits(truncated, temperature or 1).softmax(-1)


def _draw(probs: Tensor, node: Tensor, uniform: Tensor) -> Tensor:
    """A token (B, S) for each sample, from probs (B, M, V) at its prefix `node` (B, S), by inverse transform sampling
    with `uniform` (B, S) in [0, 1)."""
    mass = cumulative_sum(probs, -1).gather(1, _expand(node, probs.shape[-1]))  # (B, S, V)
    # In (0, total], so that no token of probability 0 is drawn.
    threshold = (1 - uniform[..., None]) * mass[..., -1:]
    return torch.searchsorted(mass, threshold).squeeze(-1)


def _expand(node: Tensor, size: int) -> Tensor:
    """Indices (B, S, V) for `gather` from node (B, S)."""
    return node[..., None].expand(-1, -1, size)
