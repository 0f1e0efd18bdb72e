"""A Llama as llama2.c's `model.bin` and `tokenizer.bin`."""

from dataclasses import replace
from pathlib import Path

from zoo.errors import UserError
from zoo.export.pieces import llama2c_bytes, pieces_of
from zoo.llama.checkpoints import save_checkpoint
from zoo.llama.model import Llama
from zoo.tokenizers import Tokenizer
from zoo.tokenizers.llama2c import Llama2cTokenizer

TOKENIZER = "tokenizer.bin"


def write_llama2c(model: Llama, tokenizer: Tokenizer | None, file: Path) -> None:
    """Write a `.bin` file, and `tokenizer.bin` next to it if there is a tokenizer.

    Args:
        model: the model.
        tokenizer: its tokenizer, if it has one.
        file: the `.bin` file.

    Raises:
        UserError: the files cannot express the model or its tokenizer.
    """
    content = None if tokenizer is None else _tokenizer_bytes(tokenizer)
    save_checkpoint(without_padding(model), file, format="llama2c")
    if content is not None:
        file.with_name(TOKENIZER).write_bytes(content)


def without_padding(model: Llama) -> Llama:
    """The model without the rows of embedding and output matrix whose ids are never generated."""
    config = model.config
    if config.n_rows == config.vocab_size:
        return model
    smaller = Llama(replace(config, padded_vocab_size=None, stop_tokens=None)).eval()
    state = model.state_dict()
    rows = {
        name: state[name][: config.vocab_size] for name in ("tok_embeddings.weight", "output.weight") if name in state
    }
    smaller.load_state_dict(state | rows)
    return smaller


def _tokenizer_bytes(tokenizer: Tokenizer) -> bytes:
    if isinstance(tokenizer, Llama2cTokenizer):
        return tokenizer.data
    pieces = pieces_of(tokenizer)
    if pieces is None or not pieces.has_llama_layout or not pieces.is_plain:
        raise UserError(
            "llama2.c's tokenizer.bin holds only SentencePiece models with the rules of Llama 2, not "
            f"{tokenizer.source} (of the kind {tokenizer.kind}): use --format hf, or --data.tokenizer none to write "
            "the weights alone"
        )
    return llama2c_bytes(pieces)
