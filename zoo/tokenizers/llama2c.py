"""llama2.c's `tokenizer.bin` (https://github.com/karpathy/llama2.c): byte-pair encoding by piece scores.

The file contains the length of the longest piece (uint32) and then, per token, its score (float32), its length (uint32)
and its bytes. Tokens 0, 1, 2 are unknown, BOS, EOS; 3 to 258 are the single bytes, written `<0x00>` to `<0xFF>`. A
space is added before a text.

llama2.c compares all pairs of neighbours before each merge, which takes quadratic time. Here a heap gives the same
merges (best score first, leftmost among equals), and the text is first cut between any two characters that are not
neighbours in any piece. No merge can cross such a cut, so each part is encoded separately, and most parts are words
found in a cache.
"""

import base64
import heapq
import math
import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from zoo.errors import UserError
from zoo.tokenizers.base import OtherFormat, State, Tokenizer

_BYTE_PIECE = re.compile(rb"<0x[0-9A-F]{2}>")
_FIRST_BYTE = 3
_CACHED_CHARS = 64  # longer parts are rarely repeated words, and would fill the cache


class Llama2cTokenizer(Tokenizer):
    """A tokenizer from the bytes of a `tok*.bin` file.

    Raises:
        UserError: the bytes have another format, or are truncated.
    """

    kind = "llama2c"
    bos_id = 1
    eos_id = 2
    pieces: list[bytes]
    """The text of each token, (vocab_size,)."""
    scores: list[float]
    """The score of each token, (vocab_size,): of two possible merges the one into the higher score comes first."""
    data: bytes
    """The content of the file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.pieces, self.scores = _parse(data)
        self.vocab_size = len(self.pieces)
        # Where a piece occurs twice, its first id is used.
        self._ids = {piece: i for i, piece in reversed(list(enumerate(self.pieces)))}
        self._texts = list(self.pieces)  # what each piece decodes to
        self._texts[_FIRST_BYTE : _FIRST_BYTE + 256] = [bytes([byte]) for byte in range(256)]
        self._texts[self.bos_id] = self._texts[self.eos_id] = b""
        pieces = [piece.decode(errors="surrogateescape") for piece in self.pieces]
        self._neighbours = {a + b for piece in pieces for a, b in pairwise(piece)}
        # If the written form of a byte is part of another piece, bytes can take part in merges: then nothing is cut.
        self._divisible = not any(len(p) > 6 and _BYTE_PIECE.search(p) for p in self.pieces)
        self._merge_cached = lru_cache(maxsize=1 << 16)(self._merge)

    def state(self) -> State:
        return {"kind": self.kind, "model": base64.b64encode(self.data).decode()}

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[i for part in self._parts(" " + text) for i in part] if text else [] for text in texts]

    def _parts(self, text: str) -> list[tuple[int, ...]]:
        if not self._divisible:
            return [self._merge(text)]
        # Cut between characters that no piece has next to each other, and encode each part separately.
        cuts = [i for i, (a, b) in enumerate(pairwise(text), 1) if a + b not in self._neighbours]
        parts = (text[a:b] for a, b in pairwise([0, *cuts, len(text)]))
        return [(self._merge_cached if len(part) <= _CACHED_CHARS else self._merge)(part) for part in parts]

    def _merge(self, text: str) -> tuple[int, ...]:
        """The tokens of `text`: greedy merges of its characters, in a doubly linked list."""
        # Start with one token per character, or per byte of a character that is not a piece.
        tokens: list[int] = []
        for character in text:
            encoded = character.encode()
            piece_id = self._ids.get(encoded)
            tokens += [piece_id] if piece_id is not None else [_FIRST_BYTE + byte for byte in encoded]
        # Neighbours of each token by position, and a heap of possible merges, the best score first.
        end = len(tokens)
        right, left = list(range(1, end + 1)), list(range(-1, end - 1))
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(i: int) -> None:
            """Put the pair that starts at i on the heap, if it forms a piece."""
            j = right[i]
            if j < end:
                merged = self._ids.get(self.pieces[tokens[i]] + self.pieces[tokens[j]])
                if merged is not None:
                    heapq.heappush(heap, (-self.scores[merged], i, tokens[i], tokens[j], merged))

        for i in range(end):
            offer(i)
        # Merge the best pair until none is left.
        while heap:
            _, i, first, second, merged = heapq.heappop(heap)
            j = right[i]
            if j == end or tokens[i] != first or tokens[j] != second:
                continue  # outdated: one of the two has been merged with its other neighbour
            # The merged token stays at i, j leaves the list, and new pairs with both neighbours are possible.
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
            # After BOS, drop the space that encoding has added.
            text += piece[1:] if previous == self.bos_id and piece.startswith(b" ") else piece
        return text.decode(errors="replace")


def _parse(data: bytes) -> tuple[list[bytes], list[float]]:
    """Pieces and scores in a file's bytes."""
    # After a header of 4 bytes, each piece is a score, a length and its bytes.
    pieces, scores, at = [], [], 4
    while at + 8 <= len(data):
        score, length = struct.unpack_from("<fI", data, at)
        pieces.append(data[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    # The pieces of the 256 bytes at fixed ids identify the format.
    head = [b"<0x%02X>" % byte for byte in range(256)]
    if pieces[_FIRST_BYTE : _FIRST_BYTE + 256] != head:
        raise OtherFormat("it is not a llama2.c tokenizer")
    if at != len(data):
        raise UserError("it is a truncated llama2.c tokenizer; download it again")
    if wrong := [i for i, score in enumerate(scores) if not math.isfinite(score)]:
        raise UserError(f"it is a damaged llama2.c tokenizer: the score of token {wrong[0]} is not finite")
    return pieces, scores
