"""Word embeddings for another vocabulary: common words keep theirs, new words start near those of their kind."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.tokenizers.hugging_face import HuggingFaceTokenizer
from zoo.tokenizers.word_pieces import with_words
from zoo.training.random_streams import stream

_KINDS = {
    "part": re.compile(r"##.*|.|<unk>"),  # of a word, for words that are not in the vocabulary
    "mantissa": re.compile(r"[-+]?\d*\.?\d+,?"),
    "power": re.compile(r"e-?\d*,?"),
    "name": re.compile(r".*:"),  # of a column
    "value": re.compile(r".*"),  # of a category, or another word
}
SPREAD = 0.5  # of new words, in standard deviations of their kind


def kind_of(word: str) -> str:
    """The kind of a word in the text of a table's row."""
    return next(kind for kind, pattern in _KINDS.items() if pattern.fullmatch(word))


def transfer_embedding(
    embedding: Tensor, old: Mapping[str, int], new: Mapping[str, int], seed: int = 0
) -> tuple[Tensor, int]:
    """The embedding (V', D) of a new vocabulary from the embedding (V, D) of an old one.

    A word of both vocabularies keeps its row. The row of any other word is normally distributed around the mean of the
    old words of its kind (a number, a power of ten, a column's name, a value), with half of their standard deviation.
    (Copies of random old words were worse: they bring the effects of other columns.)

    Args:
        embedding: (V, D) rows of the old vocabulary.
        old: word -> row.
        new: word -> row.
        seed: seed of the draw.

    Returns:
        The new embedding, and the number of words that both vocabularies have.
    """
    rows_of_kind = defaultdict(list)
    for word, row in old.items():
        rows_of_kind[kind_of(word)].append(row)
    every = list(range(len(embedding)))
    groups = {kind: embedding[rows_of_kind[kind] or every] for kind in _KINDS}
    means = {kind: (group.mean(0), SPREAD * group.std(0, correction=0)) for kind, group in groups.items()}
    shape, generator = (max(new.values()) + 1, embedding.shape[1]), stream(seed, "new words")
    noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    transferred = noise.to(embedding)
    for word, row in new.items():
        mean, spread = means[kind_of(word)]
        transferred[row] = embedding[old[word]] if word in old else mean + spread * transferred[row]
    return transferred, len(old.keys() & new.keys())


def add_words(model: Any, texts: list[str], seed: int) -> None:
    """Give words that occur twice or more a token each, if the model's tokenizer is one of words and parts.

    Args:
        model: a `RegressLMModule`, whose tokenizer and embedding are replaced.
        texts: as the tokenizer reads them.
        seed: seed of the new rows of the embedding.
    """
    own = model.tokenizer
    tokenizer = with_words(own, texts)
    if tokenizer is None or not isinstance(own, HuggingFaceTokenizer):
        return
    old = model.model.encoder.embedding
    weight, _ = transfer_embedding(old.weight.detach(), own.tokens, tokenizer.tokens, seed)
    model.model.encoder.embedding = nn.Embedding.from_pretrained(weight, freeze=not old.weight.requires_grad)
    model.tokenizer = tokenizer
    model.model.config.vocab_size = model.hparams["vocab_size"] = tokenizer.vocab_size
