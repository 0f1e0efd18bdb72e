"""Printable ASCII characters as tokens: a fixed vocabulary, so that no text that is met later can change it."""

from collections.abc import Sequence

from zoo.tokenizers.base import State, Tokenizer

_CHARACTERS = sorted({"\t", "\n", *map(chr, range(ord(" "), ord("~") + 1))})
_IDS = {character: i for i, character in enumerate(_CHARACTERS, start=2)}
_TEXTS = ("", "\ufffd", *_CHARACTERS)


class CharacterTokenizer(Tokenizer):
    """0 is <pad>, 1 is <unk>, and then come tab, newline and printable ASCII, by their codes.

    These are the ids of upstream RegressLM's character vocabulary, so that its weights can be loaded. Any other
    character is <unk>, which decodes as U+FFFD; <pad> is never given out, and decodes as nothing.
    """

    kind = "characters"
    tokens = ("<pad>", "<unk>", *_CHARACTERS)
    vocab_size = len(tokens)
    bos_id = None
    eos_id = None

    def state(self) -> State:
        return {"kind": self.kind}

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[_IDS.get(character, 1) for character in text] for text in texts]

    def _decode(self, ids: list[int]) -> str:
        return "".join(_TEXTS[i] for i in ids)
