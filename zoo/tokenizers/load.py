"""One name or path in, the right tokenizer out: the kinds are told apart by what the files hold."""

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

# What GPT-2's vocabulary and merges are called, by OpenAI and by Hugging Face; a prefix may come before both.
_PARTNERS = {"encoder.json": "vocab.bpe", "vocab.json": "merges.txt"}
_NAMED: dict[str, type[Tokenizer]] = {kind.kind: kind for kind in (ByteTokenizer, CharacterTokenizer)}
_KINDS = (
    "'bytes', 'characters', a SentencePiece model, llama2.c's tok*.bin, GPT-2's vocabulary, a Hugging Face folder"
)
_SUFFIXES = {".model", ".bin", ".json", ".bpe", ".txt", ".ckpt", ".pt"}  # of files, not of names on the hub
_UNKNOWN = "it is not a tokenizer of any known kind, or was cut short"


def load_tokenizer(path_or_name: str | Path) -> Tokenizer:
    """The tokenizer called "bytes" or "characters", the one that a file or folder holds, or a model's on the hub.

    Files: a SentencePiece `.model`, llama2.c's `tok*.bin`, either of GPT-2's two files (the other is looked
    for beside it), a `tokenizer.json`, a checkpoint of ours that carries its tokenizer. Folders: Hugging
    Face's, by their `tokenizer.json`, else `tokenizer.model`, else vocabulary and merges.

    Raises:
        FileNotFoundError: nothing is there, nor on the hub.
        ValueError: what is there is no tokenizer, or is damaged.
    """
    if str(path_or_name) in _NAMED:
        return _NAMED[str(path_or_name)]()
    path = Path(path_or_name)
    if not path.exists():
        path = _from_hub(str(path_or_name))
    try:
        return _load_folder(path) if path.is_dir() else _load_file(path)
    except ValueError as error:
        unreadable = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
        reason = _UNKNOWN if unreadable else error
        raise UserError(f"{path} cannot be used as a tokenizer: {reason}") from error


def from_state(state: State) -> Tokenizer:
    """The tokenizer whose `state()` this is.

    Raises:
        ValueError: it is no tokenizer's state.
    """
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
    raise UserError(f"the saved tokenizer is of a kind that this zoo does not know: {kind!r}")


def _from_hub(name: str) -> Path:
    """The `tokenizer.json` of a model on the hub, "gpt2" or "owner/name", downloaded once."""
    missing = f"no tokenizer is at {name}"
    kinds = f"give {_KINDS}, a checkpoint of ours, or a model's name on the hub"
    if not re.fullmatch(r"[\w-]+(/[\w.-]+)?", name) or Path(name).suffix in _SUFFIXES:
        raise FileNotFoundError(f"{missing}: {kinds}")
    from huggingface_hub import hf_hub_download

    reachable = online()
    try:
        return Path(hf_hub_download(name, "tokenizer.json", local_files_only=not reachable))
    except Exception as error:  # no such model, no such file, no leave: there are many ways to say no
        reason = "the hub gave none of that name" if reachable else "the hub cannot be reached"
        raise FileNotFoundError(f"{missing}, and {reason}: {kinds}") from error


def _load_folder(folder: Path) -> Tokenizer:
    for name in ("tokenizer.json", "tokenizer.model", *_PARTNERS):
        if (folder / name).is_file():
            return _load_file(folder / name)
    raise UserError(f"the folder holds no {', '.join(['tokenizer.json', 'tokenizer.model', *_PARTNERS])}")


def _load_file(file: Path) -> Tokenizer:
    with file.open("rb") as content:
        if content.read(4) == b"PK\3\4":
            return _from_checkpoint(file)
    data = file.read_bytes()
    if not data:
        raise UserError("the file is empty")
    if data.lstrip()[:1] == b"{":
        if isinstance(json.loads(data).get("model"), dict):
            return read_tokenizer_json(file)
        return _gpt2_beside(file, first=True)
    if data.startswith(b"#version") or file.name.endswith(tuple(_PARTNERS.values())):
        return _gpt2_beside(file, first=False)
    try:
        return Llama2cTokenizer(data)
    except ValueError as error:
        if "cut short" in str(error):
            raise
    try:
        return SentencePieceTokenizer(data)
    except ValueError:
        raise UserError(_UNKNOWN) from None


def _gpt2_beside(file: Path, first: bool) -> Tokenizer:
    for vocab, merges in _PARTNERS.items():
        here, there = (vocab, merges) if first else (merges, vocab)
        if file.name.endswith(here):
            partner = file.with_name(file.name.removesuffix(here) + there)
            if not partner.is_file():
                raise UserError(f"its other half, {partner.name}, is not beside it")
            return read_gpt2(*((file, partner) if first else (partner, file)))
    known = " or ".join(" with ".join(pair) for pair in _PARTNERS.items())
    raise UserError(f"if it is half of GPT-2's vocabulary and merges, name them {known}")


def _from_checkpoint(file: Path) -> Tokenizer:
    import torch

    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError("it is a checkpoint that cannot be read safely, or was cut short") from error
    state = checkpoint.get("tokenizer") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise UserError("it is a checkpoint that carries no tokenizer")
    return from_state(state)
