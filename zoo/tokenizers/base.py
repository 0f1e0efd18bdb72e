"""What every tokenizer of the zoo can do, and how text is streamed out of one."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import ClassVar

from zoo.errors import UserError

# What `state()` holds: plain values only, so that a checkpoint that carries it loads with weights_only=True.
State = dict[str, str | int | None]


class Tokenizer(ABC):
    """Text to token ids and back.

    Ids lie in [0, vocab_size). `bos_id` opens a document, `eos_id` closes one; either is None where the
    vocabulary has no such token. `decode` gives text only: it leaves both of them out.
    """

    kind: ClassVar[str]
    vocab_size: int
    bos_id: int | None
    eos_id: int | None

    def encode(self, text: str, bos: bool = True, eos: bool = False) -> list[int]:
        """The ids of `text`, opened by BOS and closed by EOS where asked for and where there is one."""
        [ids] = self.encode_batch([text])
        front = [self.bos_id] if bos and self.bos_id is not None else []
        back = [self.eos_id] if eos and self.eos_id is not None else []
        return [*front, *ids, *back]

    def encode_batch(self, texts: Sequence[str], continued: bool = False) -> list[list[int]]:
        """The bare ids of each text, without BOS and EOS.

        `continued` says that a line of the same document came before each text: then none is given what a
        tokenizer puts before a document's first word, so that a long document can be encoded in parts.
        """
        if not continued:
            return self._encode_batch(texts)
        [line_end] = self._encode_batch(["\n"])
        n, after = len(line_end), self._encode_batch(["\n" + text for text in texts])
        # A byte-level BPE may merge the line end with the indent after it; it puts nothing before a first word.
        return [
            ids[n:] if ids[:n] == line_end else self._encode_batch([text])[0]
            for ids, text in zip(after, texts, strict=True)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        known = [int(i) for i in ids]
        for i in known:
            if not 0 <= i < self.vocab_size:
                raise UserError(f"token {i} is outside the tokenizer's vocabulary of {self.vocab_size}")
        return self._decode(known)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that two tokenizers share if they were made from the same vocabulary."""
        return hashlib.blake2b(json.dumps(self.state(), sort_keys=True).encode(), digest_size=8).hexdigest()

    @abstractmethod
    def state(self) -> State:
        """All it takes to make this tokenizer again with `zoo.tokenizers.from_state`."""

    @abstractmethod
    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    @abstractmethod
    def _decode(self, ids: list[int]) -> str: ...


class TextStream:
    """Decodes token by token: the pieces that `push` returns and `flush` ends join to `decode` of all ids.

    A character may be spread over several tokens, and some tokenizers drop a leading space. So a piece is
    the difference between two decodings of a short window that begins with the last visible text, and an
    unfinished character (U+FFFD at the end) waits for its next token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._window: list[int] = []
        self._shown = 0  # how many of the window's tokens have been given out

    def push(self, token: int) -> str:
        """The text that `token` completes; often "" in the middle of a character."""
        self._window.append(int(token))
        piece = self._pending()
        if not piece or piece.endswith("\ufffd"):
            return ""
        if not piece.isspace():  # safe to begin a window with: a decoder strips nothing but spaces
            del self._window[: self._shown]
        self._shown = len(self._window)
        return piece

    def flush(self) -> str:
        """What was held back: the bytes of a character that was never finished."""
        piece = self._pending()
        self._window, self._shown = [], 0
        return piece

    def _pending(self) -> str:
        decode = self.tokenizer.decode
        return decode(self._window)[len(decode(self._window[: self._shown])) :]


def stream_decode(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """`decode(ids)`, piece by piece while the ids arrive."""
    stream = TextStream(tokenizer)
    for token in ids:
        if piece := stream.push(token):
            yield piece
    if piece := stream.flush():
        yield piece
