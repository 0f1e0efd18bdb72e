"""The tokenizer of a pretrained encoder, with the special tokens that the encoder was trained with."""

from collections.abc import Sequence
from functools import cached_property

from zoo.errors import UserError
from zoo.hub.transformers_library import load_pretrained
from zoo.tokenizers.base import State, Tokenizer
from zoo.tokenizers.hugging_face import guarded, tokenizers_library

PREFIX = "transformers:"  # of names in `load_tokenizer`


class EncoderTokenizer(Tokenizer):
    """A tokenizer of transformers' AutoTokenizer. A text is encoded with its special tokens, as "[CLS] text [SEP]".

    The name of a special token within a text is encoded like any other text. A text without any other token has no
    ids, so that an empty text is refused like with other tokenizers.

    Args:
        description: the text of a `tokenizer.json`.

    Raises:
        UserError: the text does not describe a tokenizer.
    """

    kind = "transformers"
    bos_id = None  # special tokens are added to every text, independent of the arguments of `encode`
    eos_id = None

    def __init__(self, description: str) -> None:
        self._description = description
        self._tokenizer = guarded(
            lambda: tokenizers_library().Tokenizer.from_str(description), "the encoder's tokenizer cannot be read"
        )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        if not self.vocab_size:
            raise UserError("the encoder's tokenizer is damaged: its vocabulary is empty")

    @cached_property
    def closing_ids(self) -> list[int]:
        """The special tokens after a text, as [SEP]."""
        # A text of one token shows which special tokens are before and after it.
        encoding = self._encode(["a"])[0]
        last = max((i for i, special in enumerate(encoding.special_tokens_mask) if not special), default=-1)
        return encoding.ids[last + 1 :]

    def truncated(self, ids: list[int], limit: int) -> list[int]:
        """The first tokens of a text and the special tokens after it, together at most `limit`."""
        n = len(self.closing_ids)
        return ids if len(ids) <= limit else [*ids[: limit - n], *self.closing_ids][:limit]

    def state(self) -> State:
        return {"kind": self.kind, "model": self._description}

    def _encode(self, texts: Sequence[str]) -> list:
        return guarded(lambda: self._tokenizer.encode_batch(list(texts)), f"{self.source} cannot encode a text")

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[] if all(encoding.special_tokens_mask) else encoding.ids for encoding in self._encode(texts)]

    def _decode(self, ids: list[int]) -> str:
        return guarded(lambda: self._tokenizer.decode(ids), f"{self.source} cannot decode tokens")


def load_encoder_tokenizer(name: str) -> EncoderTokenizer:
    """The tokenizer of the encoder in a folder, or on the hub.

    Raises:
        FileNotFoundError: neither a folder nor a model on the hub has this name.
        UserError: it lacks a tokenizer of the `tokenizers` library.
    """
    loaded = load_pretrained("AutoTokenizer", name)
    if not getattr(loaded, "is_fast", False):
        raise UserError(f"{name} has no tokenizer.json, and transformers cannot make one: give another encoder")
    tokenizer = EncoderTokenizer(loaded.backend_tokenizer.to_str())
    tokenizer.source = name
    return tokenizer
