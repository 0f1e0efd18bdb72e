"""The vocabulary size that llama2.c's weights declare: in the header of a `.bin`, or the settings of a `.pt`."""

import struct
from pathlib import Path

HEADER = struct.Struct("<7i")  # dim, hidden_dim, n_layers, n_heads, n_kv_heads, +-vocab_size, max_seq_len


def declared_vocab_size(path: Path) -> int | None:
    """The vocabulary size of the weights in a file; None for another kind of file.

    Raises:
        UserError: a `.pt` is damaged.
    """
    if path.suffix == ".bin":
        with path.open("rb") as file:
            header = file.read(HEADER.size)
        return abs(HEADER.unpack(header)[5]) if len(header) == HEADER.size else None
    if path.suffix != ".pt":
        return None
    from zoo.files.torch_files import read_torch_file  # here, because it imports torch

    content = read_torch_file(path, mmap=True)
    settings = content.get("model_args") if isinstance(content, dict) else None
    size = settings.get("vocab_size") if isinstance(settings, dict) else None
    return size if type(size) is int else None
