"""Character tokenizer: a fixed vocabulary of printable ASCII characters."""

from collections.abc import Sequence

from zoo.tokenizers.base import State, Tokenizer

_CHARACTERS = sorted({"\t", "\n", *map(chr, range(ord(" "), ord("~") + 1))})
_IDS = {character: i for i, character in enumerate(_CHARACTERS, start=2)}
_TEXTS = ("", "\ufffd", *_CHARACTERS)


class CharacterTokenizer(Tokenizer):
    """Id 0 is <pad>, 1 is <unk>, followed by tab, newline and printable ASCII in the order of their codes.

    These are the ids of upstream RegressLM's character vocabulary, so that its weights can be loaded. Any other
    character is <unk>, which decodes as U+FFFD. Encoding never produces <pad>, which decodes as the empty text.
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
