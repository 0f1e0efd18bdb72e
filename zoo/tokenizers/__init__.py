"""Tokenizers: bytes, characters, SentencePiece, llama2.c, byte-level BPE (GPT-2's, or trained here), Hugging Face.

    tokenizer = load_tokenizer("bytes")
    tokenizer.decode(tokenizer.encode("héllo"))  # "héllo"

A library is imported only when a tokenizer of its kind is made.
"""

from zoo.tokenizers.base import TextStream, Tokenizer, stream_decode
from zoo.tokenizers.hugging_face import train_bpe, train_words
from zoo.tokenizers.load import from_state, has_tokenizer, load_tokenizer

__all__ = [
    "TextStream",
    "Tokenizer",
    "from_state",
    "has_tokenizer",
    "load_tokenizer",
    "stream_decode",
    "train_bpe",
    "train_words",
]
