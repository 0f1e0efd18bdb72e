"""Text from a Llama: zoo.generation over the decoding step of decode.py."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from zoo.generation import appended
from zoo.generation import stream_tokens as stream_any
from zoo.llama.decode import Decoder
from zoo.llama.model import Llama


def generate(model: Llama, tokens: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
    """tokens (B, T) with up to max_new_tokens more, (B, T + n): `stream_tokens`, collected."""
    return appended(tokens, stream_tokens(model, tokens, max_new_tokens, **options))


def stream_tokens(
    model: Llama, tokens: Tensor, max_new_tokens: int, precision: str = "fp32", compile: bool = False, **options: Any
) -> Iterator[Tensor]:
    """The next token of each row, (B,), at most max_new_tokens times; the options are `zoo.generation.stream_tokens`'.

    Args:
        model: whose device the prompts, tokens (B, T), are brought to.
        precision: of the weights while decoding, "fp32" or "bf16".
        compile: compile the decoding step; worth its seconds from some thousand tokens on.
    """
    options |= {"context": model.config.max_seq_len, "vocab_size": model.config.vocab_size}

    def decoder(rows: int, columns: int) -> Decoder:
        return Decoder(model, rows, columns, precision, compile)

    return stream_any(decoder, tokens.to(model.norm.weight.device), max_new_tokens, **options)
