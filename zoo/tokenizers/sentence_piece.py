"""SentencePiece models such as those of Llama 2 and T5 (Kudo and Richardson 2018, arXiv 1808.06226)."""

import base64
import math
from collections.abc import Sequence

from zoo.errors import UserError
from zoo.tokenizers.base import OtherFormat, State, Tokenizer


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer from the bytes of a SentencePiece `.model` file.

    Args:
        proto: the bytes.
        adds_bos: whether `encode` starts a text with BOS.

    Raises:
        UserError: the bytes are not a SentencePiece model.
    """

    kind = "sentencepiece"
    proto: bytes
    """The content of the `.model` file."""

    def __init__(self, proto: bytes, adds_bos: bool = True) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._model = SentencePieceProcessor(model_proto=proto)
            self.vocab_size = self._model.vocab_size()
        except RuntimeError as error:
            raise OtherFormat("it is not a SentencePiece model") from error
        if not self.vocab_size:
            raise OtherFormat("it is an empty SentencePiece model")
        if not all(map(math.isfinite, self._model.GetScore(list(range(self.vocab_size))))):
            raise UserError("it is a damaged SentencePiece model: a score in it is not finite")
        self.proto, self.adds_bos = proto, adds_bos
        bos, eos = self._model.bos_id(), self._model.eos_id()  # -1 if the vocabulary lacks it
        self.bos_id, self.eos_id = (None if bos < 0 else bos), (None if eos < 0 else eos)

    def state(self) -> State:
        state: State = {"kind": self.kind, "model": base64.b64encode(self.proto).decode()}
        return state if self.adds_bos else state | {"adds_bos": 0}

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._model.encode(list(texts), num_threads=1)  # threads do not survive a fork

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids)
