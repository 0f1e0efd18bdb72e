"""Pieces and scores of SentencePiece and llama2.c tokenizers, from which other programs' files are written."""

import struct
from collections import Counter
from typing import Any, NamedTuple

from zoo.errors import UserError
from zoo.tokenizers import Tokenizer
from zoo.tokenizers.llama2c import Llama2cTokenizer
from zoo.tokenizers.sentence_piece import SentencePieceTokenizer

SPACE = "\u2581"  # replaces a space in pieces
# Types of pieces, by SentencePiece's and GGUF's numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_FIRST_BYTE = 3  # id of the byte 0 in Llama's vocabularies
_LLAMA_NAMES = ("<unk>", "<s>", "</s>")  # of the ids 0, 1, 2 in llama2.c's files


class Pieces(NamedTuple):
    """A vocabulary of pieces.

    Args:
        texts: the pieces, with U+2581 for spaces.
        scores: scores of the pieces.
        types: types of the pieces.
        is_unigram: whether texts are segmented by a unigram model instead of byte-pair merges.
        adds_space: whether a space is added before a text.
        removes_spaces: whether spaces at both ends and repeated spaces are removed.
        charsmap: compiled rules of Unicode normalization; empty for none.
        space: the character that replaces a space in `texts`.
    """

    texts: list[str]
    scores: list[float]
    types: list[int]
    is_unigram: bool = False
    adds_space: bool = True
    removes_spaces: bool = False
    charsmap: bytes = b""
    space: str = SPACE

    def named(self, *types: int) -> list[str]:
        """The pieces of the given types."""
        return [text for text, kind in zip(self.texts, self.types, strict=True) if kind in types]

    @property
    def has_llama_layout(self) -> bool:
        """Whether ids 0, 1, 2 are unknown, BOS, EOS, and 3 to 258 the bytes, as llama2.c's run.c expects."""
        bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
        return self.types[:3] == [UNKNOWN, CONTROL, CONTROL] and self.texts[_FIRST_BYTE : _FIRST_BYTE + 256] == bytes_of

    @property
    def is_plain(self) -> bool:
        """Whether texts are changed only by a space before them, as Llama 2 does."""
        return not self.is_unigram and self.adds_space and not self.removes_spaces and not self.charsmap


def pieces_of(tokenizer: Tokenizer) -> Pieces | None:
    """The pieces of a tokenizer; None for one of another kind.

    Raises:
        UserError: two ids have the same piece, or a piece is not UTF-8.
    """
    if isinstance(tokenizer, Llama2cTokenizer):
        pieces = _of_llama2c(tokenizer)
    elif isinstance(tokenizer, SentencePieceTokenizer):
        pieces = _of_sentencepiece(tokenizer)
    else:
        return None
    [(text, count)] = Counter(pieces.texts).most_common(1)
    if count > 1:
        raise UserError(f"{tokenizer.source} has the piece {text!r} {count} times, which other programs cannot read")
    return pieces


def llama2c_bytes(pieces: Pieces) -> bytes:
    """The content of llama2.c's tokenizer.bin."""
    texts = [text.replace(SPACE, " ").encode() for text in pieces.texts]
    texts[1], texts[2] = b"\n<s>\n", b"\n</s>\n"  # llama2.c's names, which no text contains
    entries = [struct.pack("<fI", score, len(t)) + t for t, score in zip(texts, pieces.scores, strict=True)]
    return struct.pack("<I", max(map(len, texts))) + b"".join(entries)


def _of_llama2c(tokenizer: Llama2cTokenizer) -> Pieces:
    try:
        texts = [piece.decode().replace(" ", SPACE) for piece in tokenizer.pieces]
    except UnicodeDecodeError:
        raise UserError(
            f"{tokenizer.source} has a piece that is not UTF-8 text, which other programs cannot read"
        ) from None
    texts[:3] = _LLAMA_NAMES
    n_ordinary = len(texts) - _FIRST_BYTE - 256
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * n_ordinary]
    return Pieces(texts, list(tokenizer.scores), types)


def _of_sentencepiece(tokenizer: SentencePieceTokenizer) -> Pieces:
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # whose classes are made at run time
    proto = messages.ModelProto.FromString(tokenizer.proto)
    rules = proto.normalizer_spec
    if proto.trainer_spec.treat_whitespace_as_suffix or not rules.escape_whitespaces:
        raise UserError(
            f"{tokenizer.source} treats spaces in a way that other programs cannot read: use --format safetensors"
        )
    return Pieces(
        [piece.piece for piece in proto.pieces],
        [piece.score for piece in proto.pieces],
        [piece.type for piece in proto.pieces],
        is_unigram=_kind(proto, tokenizer) == "unigram",
        adds_space=rules.add_dummy_prefix,
        removes_spaces=rules.remove_extra_whitespaces,
        charsmap=rules.precompiled_charsmap,
    )


def _kind(proto, tokenizer: SentencePieceTokenizer) -> str:
    """ "unigram" or "bpe"; SentencePiece also has models of words and characters."""
    kind = proto.trainer_spec.ModelType.Name(proto.trainer_spec.model_type).lower()
    if kind not in ("unigram", "bpe"):
        raise UserError(
            f"{tokenizer.source} is a SentencePiece model of the kind {kind}, of which only unigram and bpe can be "
            "exported: use --format safetensors"
        )
    return kind
