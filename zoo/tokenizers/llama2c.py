"""llama2.c's `tokenizer.bin` (https://github.com/karpathy/llama2.c): byte-pair encoding by piece scores.

The file holds the longest piece's length (uint32) and then, per token, its score (float32), its length
(uint32) and its bytes. Tokens 0, 1, 2 are unknown, BOS, EOS; 3 to 258 are the single bytes, spelt `<0x00>`
to `<0xFF>`; a text is encoded with one space put before it.

llama2.c looks at every pair of neighbours before each merge, which is quadratic in the text. Here the same
merges (best score first, leftmost among equals) come from a heap, and the text is first cut between every
two characters that stand side by side in no piece: no merge can cross such a cut, so each part is encoded
on its own, and most parts are words that were seen before.
"""

import base64
import heapq
import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from zoo.errors import UserError
from zoo.tokenizers.base import State, Tokenizer

_BYTE_PIECE = re.compile(rb"<0x[0-9A-F]{2}>")
_FIRST_BYTE = 3
_CACHED_CHARS = 64  # longer parts are seldom words, and would only crowd the cache


class Llama2cTokenizer(Tokenizer):
    """The tokenizer in the bytes of one `tok*.bin`.

    Raises:
        ValueError: the bytes are not of this format, or are cut short.
    """

    kind = "llama2c"
    bos_id = 1
    eos_id = 2

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._pieces, self._scores = _parse(data)
        self.vocab_size = len(self._pieces)
        self._ids = {piece: i for i, piece in reversed(list(enumerate(self._pieces)))}
        self._texts = list(self._pieces)  # what each piece prints
        self._texts[_FIRST_BYTE : _FIRST_BYTE + 256] = [bytes([byte]) for byte in range(256)]
        self._texts[self.bos_id] = self._texts[self.eos_id] = b""
        spellings = [piece.decode(errors="surrogateescape") for piece in self._pieces]
        self._neighbours = {a + b for spelling in spellings for a, b in pairwise(spelling)}
        # Were a byte's spelling part of another piece, bytes could take part in merges: then nothing is cut.
        self._divisible = not any(len(p) > 6 and _BYTE_PIECE.search(p) for p in self._pieces)
        self._merge_cached = lru_cache(maxsize=1 << 16)(self._merge)

    def state(self) -> State:
        return {"kind": self.kind, "model": base64.b64encode(self._data).decode()}

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[i for part in self._parts(" " + text) for i in part] if text else [] for text in texts]

    def _parts(self, text: str) -> list[tuple[int, ...]]:
        if not self._divisible:
            return [self._merge(text)]
        cuts = [i for i, (a, b) in enumerate(pairwise(text), 1) if a + b not in self._neighbours]
        parts = (text[a:b] for a, b in pairwise([0, *cuts, len(text)]))
        return [(self._merge_cached if len(part) <= _CACHED_CHARS else self._merge)(part) for part in parts]

    def _merge(self, text: str) -> tuple[int, ...]:
        """Greedy merges of the characters of `text`, on a doubly linked list of its tokens."""
        tokens: list[int] = []
        for character in text:
            spelling = character.encode()
            known = self._ids.get(spelling)
            tokens += [known] if known is not None else [_FIRST_BYTE + byte for byte in spelling]
        end = len(tokens)
        right, left = list(range(1, end + 1)), list(range(-1, end - 1))
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(i: int) -> None:
            """Put the pair that begins at i on the heap, if it spells a piece."""
            j = right[i]
            if j < end:
                merged = self._ids.get(self._pieces[tokens[i]] + self._pieces[tokens[j]])
                if merged is not None:
                    heapq.heappush(heap, (-self._scores[merged], i, tokens[i], tokens[j], merged))

        for i in range(end):
            offer(i)
        while heap:
            _, i, first, second, merged = heapq.heappop(heap)
            j = right[i]
            if j == end or tokens[i] != first or tokens[j] != second:
                continue  # one of the two was merged with another neighbour meanwhile
            tokens[i], tokens[j] = merged, -1
            right[i] = right[j]
            if right[j] < end:
                left[right[j]] = i
            offer(i)
            if left[i] >= 0:
                offer(left[i])
        return tuple(token for token in tokens if token >= 0)

    def _decode(self, ids: list[int]) -> str:
        text = bytearray()
        for previous, i in pairwise([-1, *ids]):
            piece = self._texts[i]
            # The space that encoding put before the text is one that no one wrote.
            text += piece[1:] if previous == self.bos_id and piece.startswith(b" ") else piece
        return text.decode(errors="replace")


def _parse(data: bytes) -> tuple[list[bytes], list[float]]:
    pieces, scores, at = [], [], 4
    while at + 8 <= len(data):
        score, length = struct.unpack_from("<fI", data, at)
        pieces.append(data[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    head = [b"<0x%02X>" % byte for byte in range(256)]
    if pieces[_FIRST_BYTE : _FIRST_BYTE + 256] != head:
        raise UserError("it is not a llama2.c tokenizer")
    if at != len(data):
        raise UserError("it is a llama2.c tokenizer that was cut short")
    return pieces, scores
