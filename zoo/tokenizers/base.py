"""Base class of tokenizers, and decoding of a stream of tokens."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from operator import index
from typing import ClassVar

from zoo.errors import UserError
from zoo.text_formats.json_text import shorten

# Plain values only, so that a checkpoint that contains a tokenizer's state loads with weights_only=True.
State = dict[str, str | int | None]


class OtherFormat(UserError):
    """A file is not of the format that a tokenizer reads."""


class Tokenizer(ABC):
    """Converts text to token ids and back. `decode` omits the tokens BOS and EOS."""

    kind: ClassVar[str]
    """Name of the class in saved states."""
    vocab_size: int
    """Number of ids, which are 0 ... vocab_size - 1."""
    bos_id: int | None
    """Id of the token that starts a document; None if the vocabulary lacks one."""
    eos_id: int | None
    """Id of the token that ends a document; None if the vocabulary lacks one."""
    adds_bos: bool = True
    """Whether `encode` starts a text with BOS."""
    source: str = "the tokenizer"
    """File or folder that the tokenizer was loaded from, for messages."""

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """The ids of `text`.

        Args:
            text: any text.
            bos: start with BOS, if the vocabulary has it and the tokenizer's settings (`adds_bos`) do not omit it.
            eos: end with EOS, if the vocabulary has it.
        """
        [ids] = self.encode_batch([text])
        front = self.leading_ids if bos else []
        back = [self.eos_id] if eos and self.eos_id is not None else []
        return [*front, *ids, *back]

    @property
    def leading_ids(self) -> list[int]:
        """The ids before a text: BOS, or none."""
        return [self.bos_id] if self.adds_bos and self.bos_id is not None else []

    def encode_batch(self, texts: Sequence[str], continued: bool = False) -> list[list[int]]:
        """The ids of each text, without BOS and EOS.

        Args:
            texts: any texts.
            continued: each text follows a line end in the same document, so that a long document can be encoded in
                parts. Without it, some tokenizers add a space before the first word.

        Raises:
            UserError: one of them is not a text.
        """
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"a tokenizer encodes texts, not a {type(text).__name__}")
        if not continued:
            return self._encode_batch(texts)
        # Encode the text behind a line end, as it appears in the document, then remove the line end's tokens.
        [line_end] = self._encode_batch(["\n"])
        n, after = len(line_end), self._encode_batch(["\n" + text for text in texts])
        # A byte-level BPE may merge the line end with a following indent; then the text is encoded alone, because such
        # a tokenizer adds nothing before the first word.
        return [
            ids[n:] if ids[:n] == line_end else self._encode_batch([text])[0]
            for ids, text in zip(after, texts, strict=True)
        ]

    def truncated(self, ids: list[int], limit: int) -> list[int]:
        """The first `limit` ids of a text from `encode_batch`."""
        return ids[:limit]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Raises:
            UserError: an id is not an integer, or outside the vocabulary.
        """
        try:
            checked = [index(i) for i in ids]
        except TypeError:
            raise UserError(f"a tokenizer decodes a list of whole numbers, not {shorten(ids)}") from None
        for i in checked:
            if not 0 <= i < self.vocab_size:
                raise UserError(
                    f"token {i} is outside the tokenizer's vocabulary of {self.vocab_size}: use the model's tokenizer"
                )
        return self._decode(checked)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits, equal for two tokenizers exactly if their vocabularies are."""
        return hashlib.blake2b(json.dumps(self.state(), sort_keys=True).encode(), digest_size=8).hexdigest()

    @abstractmethod
    def state(self) -> State:
        """Plain values from which `zoo.tokenizers.from_state` makes this tokenizer again."""

    @abstractmethod
    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...


class TextStream:
    """Decodes token by token: the results of `push` and of a final `flush`, joined, equal `decode` of all ids.

    A character may consist of several tokens, and some tokenizers drop a leading space. Therefore a piece of text is
    the difference between two decodings of a short window that starts with visible text, and an incomplete character
    (U+FFFD at the end) waits for its next token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._window: list[int] = []
        self._shown = 0  # number of the window's tokens whose text was returned

    def push(self, token: int) -> str:
        """The text that `token` completes; "" within a character."""
        self._window.append(int(token))
        # An incomplete character waits for the tokens that complete it.
        piece = self._pending()
        if not piece or piece.endswith("\ufffd"):
            return ""
        if not piece.isspace():  # a window can start with it: decoders strip only spaces
            del self._window[: self._shown]
        self._shown = len(self._window)
        return piece

    def flush(self) -> str:
        """The remaining text: the bytes of an incomplete character."""
        piece = self._pending()
        self._window, self._shown = [], 0
        return piece

    def _pending(self) -> str:
        decode = self.tokenizer.decode
        return decode(self._window)[len(decode(self._window[: self._shown])) :]


def stream_decode(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """`decode(ids)`, in pieces while the ids arrive."""
    stream = TextStream(tokenizer)
    for token in ids:
        if piece := stream.push(token):
            yield piece
    if piece := stream.flush():
        yield piece
