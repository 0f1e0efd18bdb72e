"""Writing of an export: the format is checked, the files are written under a temporary name, then renamed."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.export.formats import SUFFIXES, check_format
from zoo.export.merging import merge_updates
from zoo.files.atomic import flush_folder, temporary_path
from zoo.files.remote_files import refuse_url
from zoo.files.safetensors_checkpoints import write_safetensors_checkpoint
from zoo.tokenizers import Tokenizer

FILE_SUFFIXES = {*SUFFIXES.values(), ".safetensors", ".pt", ".ckpt", ".zip", ".json"}
# Entries of a checkpoint that only a resumed training needs.
NOT_EXPORTED = ("optimizer_states", "lr_schedulers", "base_digest", "loops", "callbacks")


def export_module(
    module: Any, format: str, destination: str | os.PathLike, checkpoint: Mapping[str, Any] | None = None
) -> dict[str, str]:
    """Write a LightningModule of the zoo in a format of other programs.

    The module is put into evaluation mode, and low-rank updates are merged into its weights.

    Args:
        module: the module, with its tokenizer in `tokenizer`.
        format: "hf", "llama2c", "gguf", "onnx" or "safetensors".
        destination: a folder that does not exist; or a file that does not exist, for "llama2c" with the suffix .bin,
            for "gguf" .gguf, for "onnx" .onnx (of a model of one graph). Missing parents are created.
        checkpoint: further entries for "safetensors": the checkpoint that the module was loaded from.

    Returns:
        Path -> note of each file written; the note of an ONNX file is its largest difference in onnxruntime.

    Raises:
        UserError: the format cannot hold the model or its tokenizer, a package is missing, or a file exists already.
    """
    refuse_url("the destination", destination)
    check_format(module, format)
    target = Path(destination)
    is_file = target.suffix.lower() == SUFFIXES.get(format)
    if not is_file and target.suffix.lower() in FILE_SUFFIXES:
        own = f", or a file with the suffix {SUFFIXES[format]}" if format in SUFFIXES else ""
        raise UserError(f"{target} is the name of a file, but --format {format} writes a folder{own}: name another one")
    check_absent(target)
    merge_updates(module.eval())
    notes: dict[str, str] = {}

    def write(folder: Path, name: str | None) -> None:
        for file, note in _write(module, format, folder, name, checkpoint or {}).items():
            notes[file] = note

    written = (_write_next_to if is_file else _write_folder)(target, write)
    return {str(path): notes.get(path.name, "") for path in written}


def check_absent(path: Path) -> None:
    """Raises UserError if a path exists, also as a broken symbolic link."""
    if not path.name:
        raise UserError(f"{path} is not a name of a file or folder: name one that does not exist")
    if os.path.lexists(path):
        raise UserError(f"{path} exists already: give another destination, or remove it first")
    parents = (parent for parent in path.parents if os.path.lexists(parent))
    if (parent := next(parents, None)) is not None and not parent.is_dir():
        raise UserError(f"{parent} is not a folder: give another destination")


def _write(module: Any, format: str, folder: Path, name: str | None, checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """Write the files of a format into an empty folder; returns notes by file name.

    Args:
        module: the module.
        format: the format.
        folder: the folder.
        name: name of the main file; None for the format's own.
        checkpoint: as in `export_module`.
    """
    tokenizer: Tokenizer | None = module.tokenizer
    # Each format's writer is imported where it is used: some take a second.
    if format == "hf":
        from zoo.export.hugging_face import write_hugging_face

        write_hugging_face(module.model, tokenizer, folder)
    elif format == "llama2c":
        from zoo.export.llama2c import write_llama2c

        write_llama2c(module.model, tokenizer, folder / (name or "model.bin"))
    elif format == "gguf":
        from zoo.export.gguf_file import write_gguf

        write_gguf(module.model, tokenizer, folder / (name or "model.gguf"))
    elif format == "onnx":
        from zoo.export.onnx_files import write_onnx
        from zoo.export.tokenizer_json import tokenizer_files

        files = {} if tokenizer is None else tokenizer_files(tokenizer)
        differences = write_onnx(module, folder, name, files.get("tokenizer.json"))
        for file, text in files.items() if name is None else ():
            (folder / file).write_text(text, encoding="utf-8")
        return {file: f"at most {value:.0e} from the model" for file, value in differences.items()}
    else:
        write_safetensors_checkpoint(_checkpoint_of(module, checkpoint), folder)
    return {}


def _checkpoint_of(module: Any, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a checkpoint of the module as it is now, and those of the one that it was loaded from."""
    state, stored = dict(module.state_dict()), checkpoint.get("state_dict", {})
    # Where nothing was merged, the tensors keep the type in which they were stored.
    state = dict(stored) if stored.keys() == state.keys() else state
    content: dict[str, Any] = {"state_dict": state, "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(content)
    kept = {name: value for name, value in checkpoint.items() if name not in (*NOT_EXPORTED, *content)}
    run = checkpoint.get("zoo", {})
    content["zoo"] = run | content["zoo"]
    if run.get("seed") is not None:  # of the run that wrote the checkpoint, not of this process
        content["zoo"]["seed"] = run["seed"]
    return {name: value for name, value in (kept | content).items() if name not in NOT_EXPORTED}


def _write_folder(target: Path, write: Callable[[Path, str | None], None]) -> list[Path]:
    """Let `write` fill a temporary folder, which is then renamed to `target`."""
    with _temporary(target) as temporary:
        write(temporary, None)
        names = sorted(path.name for path in temporary.iterdir())
        check_absent(target)  # another process may have been faster
        os.rename(temporary, target)
    flush_folder(target.parent)
    return [target / name for name in names]


def _write_next_to(target: Path, write: Callable[[Path, str | None], None]) -> list[Path]:
    """Let `write` fill a temporary folder, whose files are then moved next to `target`, one of them."""
    with _temporary(target) as temporary:
        write(temporary, target.name)
        files = sorted(temporary.iterdir(), key=lambda path: path.name == target.name)
        paths = [target.with_name(file.name) for file in files]
        for path in paths:
            check_absent(path)
        for file, path in zip(files, paths, strict=True):
            os.rename(file, path)
    flush_folder(target.parent)
    return paths


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A new hidden folder next to `target`. At the end it is removed, as are empty folders created for it."""
    missing = [parent for parent in target.parents if not parent.exists()]  # the deepest first
    folder = temporary_path(target)
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):  # it holds the export
                parent.rmdir()
