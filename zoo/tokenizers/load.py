"""Loading tokenizers by name or path; the kind of a file is recognised by its content."""

import base64
import json
import re
from pathlib import Path

from zoo.errors import UserError
from zoo.hub.connection import online
from zoo.tokenizers.base import State, Tokenizer
from zoo.tokenizers.byte_level import ByteTokenizer
from zoo.tokenizers.characters import CharacterTokenizer
from zoo.tokenizers.hugging_face import HuggingFaceTokenizer, read_gpt2, read_tokenizer_json
from zoo.tokenizers.llama2c import Llama2cTokenizer
from zoo.tokenizers.sentence_piece import SentencePieceTokenizer

# File names of GPT-2's vocabulary and merges, by OpenAI and by Hugging Face; both may have the same prefix.
_PARTNERS = {"encoder.json": "vocab.bpe", "vocab.json": "merges.txt"}
_NAMED: dict[str, type[Tokenizer]] = {kind.kind: kind for kind in (ByteTokenizer, CharacterTokenizer)}
_KINDS = "'bytes', 'characters', a SentencePiece model, llama2.c's tok*.bin, GPT-2's vocabulary, a Hugging Face folder"
# Suffixes of files; a name with one of them is not looked up on the hub.
_SUFFIXES = {".model", ".bin", ".json", ".bpe", ".txt", ".ckpt", ".pt"}
_UNKNOWN = f"it is truncated, or not a tokenizer of a known kind; give {_KINDS}"


def load_tokenizer(path_or_name: str | Path) -> Tokenizer:
    """Load a tokenizer.

    Args:
        path_or_name: "bytes" or "characters"; a file: a SentencePiece `.model`, llama2.c's `tok*.bin`, either of
            GPT-2's two files (the other must be in the same folder), a `tokenizer.json`, or a checkpoint of the zoo
            that contains its tokenizer; a Hugging Face folder, of which `tokenizer.json`, `tokenizer.model` or
            vocabulary and merges are read, in this order; or the name of a model on the hub, "gpt2" or "owner/name".

    Raises:
        FileNotFoundError: there is no such file or folder, and no such model on the hub.
        UserError: the file or folder does not contain a tokenizer, or is damaged.
    """
    # A built-in name comes first, then a file or folder, then a model on the hub.
    if str(path_or_name) in _NAMED:
        return _NAMED[str(path_or_name)]()
    path = Path(path_or_name)
    if not path.exists():
        path = _from_hub(str(path_or_name))
    try:
        return _load_folder(path) if path.is_dir() else _load_file(path)
    except ValueError as error:
        # JSON's and Unicode's errors describe positions in the file; they only mean that the kind is unknown.
        reason = _UNKNOWN if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else error
        raise UserError(f"{path} cannot be used as a tokenizer: {reason}") from error


def from_state(state: State) -> Tokenizer:
    """The tokenizer with this `state()`.

    Raises:
        UserError: the state is of an unknown kind.
    """
    # Binary models are stored as base64.
    kind, model = state.get("kind"), str(state.get("model"))
    if kind in _NAMED:
        return _NAMED[kind]()
    if kind == SentencePieceTokenizer.kind:
        return SentencePieceTokenizer(base64.b64decode(model))
    if kind == Llama2cTokenizer.kind:
        return Llama2cTokenizer(base64.b64decode(model))
    if kind == HuggingFaceTokenizer.kind:
        bos, eos = (None if (i := state[key]) is None else int(i) for key in ("bos_id", "eos_id"))
        return HuggingFaceTokenizer(model, bos, eos)
    raise UserError(f"the checkpoint's tokenizer is of the unknown kind {kind!r}: update the zoo, or give another file")


def _from_hub(name: str) -> Path:
    """The `tokenizer.json` of a model on the hub, "gpt2" or "owner/name", downloaded once."""
    # A name with a file's suffix is a missing file rather than a model on the hub.
    missing = f"no tokenizer is at {name}"
    kinds = f"give {_KINDS}, a checkpoint of the zoo, or the name of a model on the hub"
    if not re.fullmatch(r"[\w-]+(/[\w.-]+)?", name) or Path(name).suffix in _SUFFIXES:
        raise FileNotFoundError(f"{missing}: {kinds}")
    from huggingface_hub import hf_hub_download

    # Without a connection only an earlier download is used.
    reachable = online()
    try:
        return Path(hf_hub_download(name, "tokenizer.json", local_files_only=not reachable))
    except Exception as error:  # no such model or file, or no permission: errors of many types
        reason = "the hub has none of this name" if reachable else "the hub cannot be reached"
        raise FileNotFoundError(f"{missing}, and {reason}: {kinds}") from error


def _load_folder(folder: Path) -> Tokenizer:
    """The tokenizer in a Hugging Face folder."""
    for name in ("tokenizer.json", "tokenizer.model", *_PARTNERS):
        if (folder / name).is_file():
            return _load_file(folder / name)
    raise UserError(f"the folder contains none of {', '.join(['tokenizer.json', 'tokenizer.model', *_PARTNERS])}")


def _load_file(file: Path) -> Tokenizer:
    """The tokenizer in a file, whose kind is recognised by its content."""
    # A zip archive is a checkpoint by torch.save.
    with file.open("rb") as content:
        if content.read(4) == b"PK\3\4":
            return _from_checkpoint(file)
    data = file.read_bytes()
    if not data:
        raise UserError("the file is empty; download it again")
    # JSON is a tokenizer.json or a vocabulary of GPT-2, which needs its merges.
    if data.lstrip()[:1] == b"{":
        if isinstance(json.loads(data).get("model"), dict):
            return read_tokenizer_json(file)
        return _load_gpt2(file, is_vocabulary=True)
    if data.startswith(b"#version") or file.name.endswith(tuple(_PARTNERS.values())):
        return _load_gpt2(file, is_vocabulary=False)
    # Binary: llama2.c's format has no magic number, but fixed first tokens; otherwise the file must be SentencePiece's.
    try:
        return Llama2cTokenizer(data)
    except ValueError as error:
        if "truncated" in str(error):
            raise
    try:
        return SentencePieceTokenizer(data)
    except ValueError:
        raise UserError(_UNKNOWN) from None


def _load_gpt2(file: Path, is_vocabulary: bool) -> Tokenizer:
    """GPT-2's tokenizer from one of its two files and the other one in the same folder."""
    # Both files have the same prefix: find the partner from this file's name.
    for vocab, merges in _PARTNERS.items():
        suffix, partner_suffix = (vocab, merges) if is_vocabulary else (merges, vocab)
        if file.name.endswith(suffix):
            partner = file.with_name(file.name.removesuffix(suffix) + partner_suffix)
            if not partner.is_file():
                raise UserError(f"it needs {partner.name}, which is not in the same folder")
            return read_gpt2(*((file, partner) if is_vocabulary else (partner, file)))
    pairs = " or ".join(" with ".join(pair) for pair in _PARTNERS.items())
    raise UserError(f"if it is one of GPT-2's two files, name them {pairs}")


def _from_checkpoint(file: Path) -> Tokenizer:
    """The tokenizer stored in a checkpoint of the zoo."""
    from zoo.files.torch_files import read_torch_file  # imports torch

    checkpoint = read_torch_file(file, mmap=True)
    state = checkpoint.get("tokenizer") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise UserError("it is a checkpoint without a tokenizer; give the tokenizer's file")
    return from_state(state)
