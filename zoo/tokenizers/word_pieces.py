"""A tokenizer of words that can encode every text: a word that it does not know becomes its parts, down to bytes."""

from collections import Counter
from collections.abc import Iterable

from zoo.tokenizers.base import Tokenizer
from zoo.tokenizers.hugging_face import UNKNOWN, HuggingFaceTokenizer, tokenizers_library

CONTINUED = "##"  # starts the parts of a word after the first
LONGEST_WORD = 1000  # bytes; a longer word is unknown


def make_word_pieces(words: Iterable[str]) -> HuggingFaceTokenizer:
    """A tokenizer with one token per word (text between white space) of `words`, and parts of one byte each.

    Any other word is split from left to right, each time at the longest part that is a token.
    """
    alphabet = sorted(tokenizers_library().pre_tokenizers.ByteLevel.alphabet())
    return _with_entries([UNKNOWN, *alphabet, *(CONTINUED + byte for byte in alphabet), *map(_as_bytes, words)])


def with_words(tokenizer: Tokenizer | None, texts: Iterable[str]) -> HuggingFaceTokenizer | None:
    """A tokenizer of `make_word_pieces` with more words: those that occur at least twice in `texts`, after its own.

    None where it has them all, or is of another kind.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer) or CONTINUED + "!" not in tokenizer.tokens:
        return None
    counts = Counter(word for text in texts for word in text.split())
    new = [_as_bytes(word) for word in sorted(counts) if counts[word] > 1]
    old = sorted(tokenizer.tokens, key=tokenizer.tokens.__getitem__)
    new = [word for word in new if word not in tokenizer.tokens]
    return _with_entries([*old, *new]) if new else None


def _with_entries(entries: Iterable[str]) -> HuggingFaceTokenizer:
    library = tokenizers_library()
    model = library.models.WordPiece(
        {entry: i for i, entry in enumerate(dict.fromkeys(entries))},
        unk_token=UNKNOWN,
        continuing_subword_prefix=CONTINUED,
        max_input_chars_per_word=LONGEST_WORD,
    )
    tokenizer = library.Tokenizer(model)
    pre, decoders = library.pre_tokenizers, library.decoders
    bytes_of_words = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre.Sequence([pre.WhitespaceSplit(), bytes_of_words])
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix=CONTINUED, cleanup=False), decoders.ByteLevel()])
    return HuggingFaceTokenizer(tokenizer.to_str(), bos_id=None, eos_id=None)


def _as_bytes(word: str) -> str:
    """A word in the characters by which byte-level tokenizers write bytes."""
    [(piece, _)] = (
        tokenizers_library().pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)
    )
    return piece
