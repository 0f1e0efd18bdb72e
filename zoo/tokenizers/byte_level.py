"""Byte tokenizer: encodes any text, without training and without files."""

from collections.abc import Sequence

from zoo.tokenizers.base import State, Tokenizer


class ByteTokenizer(Tokenizer):
    """Ids 0-255 are the bytes of the text's UTF-8; 256 is both BOS and EOS."""

    kind = "bytes"
    vocab_size = 257
    bos_id = 256
    eos_id = 256

    def state(self) -> State:
        return {"kind": self.kind}

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def _decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")
