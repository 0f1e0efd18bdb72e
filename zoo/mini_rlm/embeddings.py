"""Token embeddings that were learnt elsewhere."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from zoo.errors import UserError


def read_embeddings(path: str | Path, shape: tuple[int, int]) -> Tensor:
    """The matrix (vocab_size, dim) that a .safetensors or .pt file holds, alone or as its one tensor of this shape.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or holds no such matrix, or several.
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"there are no embeddings at {file}: give a .pt or .safetensors file")
    try:
        safe = file.suffix == ".safetensors"
        held = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise half a dozen types for a broken file
        raise UserError(f"{file} cannot be read as embeddings: it is damaged, or holds more than weights") from error
    tensors = [t for t in (held.values() if isinstance(held, dict) else [held]) if isinstance(t, Tensor)]
    fitting = [tensor for tensor in tensors if tensor.shape == shape]
    if len(fitting) != 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors[:4]) or "no tensor"
        raise UserError(
            f"embeddings for this model are one matrix {shape}, vocabulary by dim, but {file} holds {shapes}: "
            "set dim to its width and data.tokenizer to what it was learnt with"
        )
    return fitting[0]
