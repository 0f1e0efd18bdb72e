"""Reads pretrained token embeddings from a file."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from zoo.errors import UserError


def read_embeddings(path: str | Path, shape: tuple[int, int]) -> Tensor:
    """The matrix (vocab_size, dim) in a .safetensors or .pt file: the file's only tensor of this shape.

    Args:
        path: the file.
        shape: the expected shape.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: the file cannot be read, or holds no matrix of this shape or several.
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"there are no embeddings at {file}: give a .pt or .safetensors file")
    try:
        is_safetensors = file.suffix == ".safetensors"
        content = load_file(file) if is_safetensors else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise half a dozen types for a broken file
        raise UserError(f"{file} cannot be read as embeddings: it is damaged, or holds more than weights") from error
    tensors = [t for t in (content.values() if isinstance(content, dict) else [content]) if isinstance(t, Tensor)]
    candidates = [tensor for tensor in tensors if tensor.shape == shape]
    if len(candidates) != 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors[:4]) or "no tensor"
        raise UserError(
            f"embeddings for this model are one matrix {shape}, vocabulary by dim, but {file} holds {shapes}: "
            "set dim to its width and data.tokenizer to the tokenizer that it was trained with"
        )
    return candidates[0]
