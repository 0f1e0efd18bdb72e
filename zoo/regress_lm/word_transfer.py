"""Word embeddings for another vocabulary: words that both have keep theirs, a new word starts as one of its kind."""

import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from zoo.training.random_streams import stream

_KINDS = {
    "part": re.compile(r"##.*|.|<unk>"),  # of a word, for words that are not in the vocabulary
    "mantissa": re.compile(r"[-+]?\d*\.?\d+,?"),
    "power": re.compile(r"e-?\d*,?"),
    "name": re.compile(r".*:"),  # of a column
    "value": re.compile(r".*"),  # of a category, or another word
}


def kind_of(word: str) -> str:
    """The kind of a word in the text of a table's row."""
    return next(kind for kind, pattern in _KINDS.items() if pattern.fullmatch(word))


def transfer_embedding(
    embedding: Tensor, old: Mapping[str, int], new: Mapping[str, int], seed: int = 0
) -> tuple[Tensor, int]:
    """The embedding (V', D) of a new vocabulary from the embedding (V, D) of an old one.

    A word of both vocabularies keeps its row. The row of any other word is that of a random old word of the same kind:
    a number, a power of ten, a column's name, a value.

    Args:
        embedding: (V, D) rows of the old vocabulary.
        old: word -> row.
        new: word -> row.
        seed: of the draw.

    Returns:
        The new embedding, and the number of words that both vocabularies have.
    """
    by_kind = defaultdict(list)
    for word, row in old.items():
        by_kind[kind_of(word)].append(row)
    generator = stream(seed, "new words")
    rows = torch.randint(len(embedding), (max(new.values()) + 1,), generator=generator)
    n_common = 0
    for word, row in sorted(new.items(), key=lambda item: item[1]):
        if word in old:
            rows[row] = old[word]
            n_common += 1
        elif candidates := by_kind[kind_of(word)]:
            rows[row] = candidates[int(torch.randint(len(candidates), (), generator=generator))]
    return embedding[rows].clone(), n_common
