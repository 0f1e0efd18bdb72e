"""Span corruption: spans of a text's tokens are replaced by sentinels, and the targets are the spans.

Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.1.4:

    text     Thank you for inviting me to your party last week
    inputs   Thank you <0> me to your party <1> week
    targets  <0> for inviting <1> last

Departures from T5: texts are not packed into windows of equal length; a span may start or end a text, since texts are
complete; no sentinel follows the last span.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Corrupted(NamedTuple):
    """A corrupted text. Sentinel n has the id vocab_size + n."""

    inputs: list[int]  # the text with a sentinel in place of each span
    targets: list[int]  # for each span its sentinel, then its tokens


def count_spans(length: int, share: float, mean_span: float) -> tuple[int, int]:
    """Numbers of corrupted tokens and of spans in a text of `length` tokens, at least 2."""
    corrupted = min(max(1, round(share * length)), length - 1)
    # Two spans are separated by at least one token.
    spans = min(max(1, round(corrupted / mean_span)), corrupted, length - corrupted + 1)
    return corrupted, spans


def corrupt(
    tokens: Sequence[int], vocab_size: int, generator: torch.Generator, share: float = 0.15, mean_span: float = 3.0
) -> Corrupted:
    """Replace random spans of a text by sentinels.

    Args:
        tokens: the ids of a text, at least 2.
        vocab_size: number of ids.
        generator: source of the lengths and places of the spans.
        share: share of the tokens that are corrupted, in (0, 1); rounded to a whole number of at least 1.
        mean_span: mean length of the spans, at least 1.
    """
    corrupted, spans = count_spans(len(tokens), share, mean_span)
    rest = len(tokens) - corrupted
    # Lengths of the spans: a uniform division of the corrupted tokens. Places: distinct gaps between the other tokens.
    ends = [*_choose(corrupted - 1, spans - 1, generator), corrupted - 1]
    lengths = [end - start for start, end in zip([-1, *ends], ends, strict=False)]
    gaps = _choose(rest + 1, spans, generator)
    inputs: list[int] = []
    targets: list[int] = []
    at = done = 0  # tokens of the text, and those of them that are not corrupted
    for number, (gap, length) in enumerate(zip(gaps, lengths, strict=True)):
        inputs += [*tokens[at : at + gap - done], vocab_size + number]
        at, done = at + gap - done, gap
        targets += [vocab_size + number, *tokens[at : at + length]]
        at += length
    return Corrupted([*inputs, *tokens[at:]], targets)


def _choose(n: int, k: int, generator: torch.Generator) -> list[int]:
    """k distinct numbers of 0 ... n - 1 in ascending order, uniformly."""
    return torch.randperm(n, device="cpu", generator=generator)[:k].sort().values.tolist() if k else []
