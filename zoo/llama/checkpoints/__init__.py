"""Llama checkpoints of several formats: load, save, start from pretrained weights.

Read, recognised by content and not by name:
- llama2.c's `.bin` (llama2c.py);
- llama2.c's `.pt`, also with the names of CMU's minllama course, and checkpoints of the zoo, as a file or as a folder
  in safetensors format (torch_files.py);
- Hugging Face folders (hugging_face.py).
Written: llama2.c's `.bin` and Hugging Face folders. No code from a file is run.
"""

import hashlib
import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.files import regular_file
from zoo.files.checkpoint_folders import check_complete, is_checkpoint_folder
from zoo.files.finite import check_finite
from zoo.files.safetensors_checkpoints import is_safetensors_checkpoint
from zoo.llama.checkpoints.hugging_face import read_folder, write_folder
from zoo.llama.checkpoints.llama2c import check_bin_can_express, read_bin, write_bin
from zoo.llama.checkpoints.names import Weights, check_layers, fuse_projections, llama2c_shapes, split_projections
from zoo.llama.checkpoints.torch_files import read_torch_file
from zoo.llama.model import Llama, LlamaConfig
from zoo.tokenizers import has_tokenizer, load_tokenizer
from zoo.weights import find_weights

TORCH_MAGICS = (b"PK", b"\x80\x02")  # first bytes of files by torch.save, since 2020 and before


def load_checkpoint(path: str | os.PathLike) -> Llama:
    """The model in a file or folder of a supported format, or zoo:NAME: fp32, on the CPU, in evaluation mode.

    Of a Hugging Face folder with more rows than its tokenizer has tokens, the config's vocab_size is taken from the
    tokenizer, so that the other ids are never generated; padded_vocab_size is the number of rows.

    Raises:
        FileNotFoundError: `path` does not exist.
        UserError: it is damaged, of an unknown format, or holds pickled objects; or a tensor is missing, unknown, not
            finite or of the wrong shape.
    """
    path = Path(find_weights(os.fspath(path)))
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}: check the path")
    if is_checkpoint_folder(path):
        raise UserError(f"{path} is the folder of a sharded run: write it as one file with zoo consolidate")
    if is_safetensors_checkpoint(path):
        config, weights = read_torch_file(path)
    elif path.is_dir():
        check_complete(path)
        config, weights = read_folder(path)
        # The embedding matrix may have more rows than the tokenizer has tokens.
        if (size := _tokenizer_size(path)) is not None and size < config.vocab_size:
            config = replace(config, vocab_size=size, padded_vocab_size=config.vocab_size)
    else:
        with regular_file(path).open("rb") as file:
            magic = file.read(2)
        config, weights = read_torch_file(path) if magic in TORCH_MAGICS else read_bin(path)
    if config.tie_embeddings:
        weights.pop("output.weight", None)
    check_layers(config, weights, path)
    _check_tensors(weights, config, path)
    check_finite(path, weights)
    model = Llama(config).eval()
    model.load_state_dict(fuse_projections(weights, config))
    return model


def save_checkpoint(model: Llama, path: str | os.PathLike, format: str = "hf") -> None:
    """Write the weights in fp32, each file atomically; existing files of the same names are replaced.

    Args:
        model: the model to save.
        path: for "hf" a folder, for "llama2c" a file; missing folders are created.
        format: "hf", a Hugging Face folder; or "llama2c", a `.bin` for llama2.c's run.c.

    Raises:
        UserError: the format is unknown or cannot express the model's settings (rotary scaling, rope_theta and norm_eps
            in a `.bin`).
    """
    path, config = Path(path), model.config
    if format not in ("hf", "llama2c"):
        raise UserError(f'format must be "hf" or "llama2c", not {format!r}')
    if format == "llama2c":
        check_bin_can_express(config)
    weights = split_projections(model.state_dict(), config)
    folder = path if format == "hf" else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    # Write into a temporary folder on the same disk, flush, and rename: a file is either complete or the old one.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        if format == "hf":
            write_folder(Path(temporary), config, weights)
        else:
            write_bin(Path(temporary, path.name), config, weights)
        for file in Path(temporary).iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
            os.replace(file, folder / file.name)


def new_or_loaded(config: LlamaConfig, weights: str | None, vocab_size: int | None = None) -> Llama:
    """A new model, or a pretrained one.

    Args:
        config: settings of a new model; a pretrained one takes only dropout and gradient_checkpointing from it.
        weights: file or folder of the pretrained model; None builds a new one.
        vocab_size: size of the tokenizer's vocabulary, which must be the pretrained model's; None does not check. A
            Hugging Face folder may have more rows than its tokenizer has tokens.

    Raises:
        UserError: the sizes differ, or as `load_checkpoint`.
    """
    if not weights:
        return Llama(config)
    loaded = load_checkpoint(weights)
    changes: dict[str, Any] = {"dropout": config.dropout, "gradient_checkpointing": config.gradient_checkpointing}
    if vocab_size not in (None, loaded.config.vocab_size):
        n_rows = loaded.config.n_rows
        _check_padding(Path(find_weights(weights)), vocab_size, n_rows, is_expected=config.padded_vocab_size == n_rows)
        changes |= {"vocab_size": vocab_size, "padded_vocab_size": None if vocab_size == n_rows else n_rows}
    model = Llama(replace(loaded.config, **changes))
    model.load_state_dict(loaded.state_dict())
    return model


def _check_padding(weights: Path, vocab_size: int, n_rows: int, is_expected: bool) -> None:
    """Check that a model with `n_rows` rows can belong to a tokenizer with `vocab_size` tokens.

    A Hugging Face folder without a tokenizer may have more rows than tokens; this is a warning unless `is_expected`.

    Raises:
        UserError: it is the model of another tokenizer.
    """
    is_hugging_face = weights.is_dir() and not is_safetensors_checkpoint(weights)
    is_foreign = not is_hugging_face or _tokenizer_size(weights) is not None
    if vocab_size > n_rows or (vocab_size < n_rows and is_foreign):
        raise UserError(
            f"the tokenizer has {vocab_size} tokens, but the model in {weights} {n_rows} rows: set --data.tokenizer to "
            "the model's tokenizer"
        )
    if vocab_size < n_rows and not is_expected:
        warnings.warn(
            f"the tokenizer has {vocab_size} tokens, and the model in {weights} {n_rows} rows: ids from {vocab_size} "
            "on are never generated",
            stacklevel=4,
        )


def _tokenizer_size(folder: Path) -> int | None:
    """The number of tokens of the tokenizer in a Hugging Face folder; None if it lacks one that can be used."""
    try:
        return load_tokenizer(folder).vocab_size if has_tokenizer(folder) else None
    except UserError:  # of no concern here: the weights can be used with another tokenizer
        return None


def digest(model: Llama) -> str:
    """16 hex digits, equal for two models exactly if all their weights are."""
    hasher = hashlib.blake2b(digest_size=8)
    for name, tensor in model.state_dict().items():
        hasher.update(name.encode())
        hasher.update(tensor.contiguous().numpy().data)
    return hasher.hexdigest()


def _check_tensors(weights: Weights, config: LlamaConfig, path: Path) -> None:
    """Raises UserError unless `weights` has exactly the tensors of a Llama with these settings."""
    expected = llama2c_shapes(config)
    for fault, names in (("lacks", expected.keys() - weights), ("has an unknown", weights.keys() - expected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"{path} {fault} tensor {min(names)}{more}: it does not match its own settings; give another file"
            )
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise UserError(
                f"{path}: the shape of tensor {name} is {tuple(weights[name].shape)}, but the settings imply {shape}; "
                "give another file"
            )
