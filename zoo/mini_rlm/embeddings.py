"""Reads pretrained token embeddings from a file."""

from pathlib import Path

from torch import Tensor

from zoo.errors import UserError
from zoo.files.safetensors_files import read_safetensors
from zoo.files.torch_files import read_torch_file


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
        content = read_safetensors(file) if file.suffix == ".safetensors" else read_torch_file(file, mmap=True)
    except UserError as error:
        raise UserError(f"{file} cannot be read as embeddings: {error}") from error
    tensors = [t for t in (content.values() if isinstance(content, dict) else [content]) if isinstance(t, Tensor)]
    candidates = [tensor for tensor in tensors if tensor.shape == shape]
    if len(candidates) != 1:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors[:4]) or "no tensor"
        raise UserError(
            f"embeddings for this model are one matrix {shape}, vocabulary by dim, but {file} holds {shapes}: "
            "set dim to its width and data.tokenizer to the tokenizer that it was trained with"
        )
    if not candidates[0].is_floating_point():
        raise UserError(
            f"the embeddings in {file} are of type {candidates[0].dtype}: save them as floating-point numbers"
        )
    return candidates[0]
