"""Loading tokenizers by name or path; the kind of a file is recognised by its content."""

import base64
import re
from pathlib import Path

from zoo.errors import UserError
from zoo.files.remote_files import copy_with_neighbours, is_url
from zoo.hub.connection import online
from zoo.text_formats.json_text import describe_json_error, parse_object
from zoo.tokenizers.base import OtherFormat, State, Tokenizer
from zoo.tokenizers.byte_level import ByteTokenizer
from zoo.tokenizers.characters import CharacterTokenizer
from zoo.tokenizers.encoder_tokenizer import PREFIX, EncoderTokenizer, load_encoder_tokenizer
from zoo.tokenizers.hugging_face import (
    HuggingFaceTokenizer,
    check_added_tokens,
    read_gpt2,
    read_settings,
    read_tokenizer_json,
)
from zoo.tokenizers.llama2c import Llama2cTokenizer
from zoo.tokenizers.sentence_piece import SentencePieceTokenizer
from zoo.weights import find_weights, is_project_weights

# File names of GPT-2's vocabulary and merges, by OpenAI and by Hugging Face; both may have the same prefix.
_PARTNERS = {"encoder.json": "vocab.bpe", "vocab.json": "merges.txt"}
_FOLDER_FILES = ("tokenizer.json", "tokenizer.model", *_PARTNERS)  # of a Hugging Face folder, by precedence
_NAMED: dict[str, type[Tokenizer]] = {kind.kind: kind for kind in (ByteTokenizer, CharacterTokenizer)}
_KINDS = "'bytes', 'characters', a SentencePiece model, llama2.c's tok*.bin, GPT-2's vocabulary, a Hugging Face folder"
_EXPORTED = "zoo.json"  # file of a checkpoint in safetensors format that holds the tokenizer
_IN_CHECKPOINTS = ("meta.pt", _EXPORTED)  # files with the tokenizer of checkpoints that are folders; the first: sharded
# Suffixes of files; a name with one of them is not looked up on the hub.
_SUFFIXES = {".model", ".bin", ".json", ".bpe", ".txt", ".ckpt", ".pt"}
_UNKNOWN = f"it is truncated, or not a tokenizer of a known kind; give {_KINDS}"


def load_tokenizer(path_or_name: str | Path) -> Tokenizer:
    """Load a tokenizer.

    Args:
        path_or_name: "bytes" or "characters"; a file: a SentencePiece `.model`, llama2.c's `tok*.bin`, either of
            GPT-2's two files (the other must be in the same folder), a `tokenizer.json`, or a checkpoint of the zoo
            that contains its tokenizer, also as zoo:NAME; any of these files at a URL; a Hugging Face folder, of which
            `tokenizer.json`, `tokenizer.model` or vocabulary and merges are read, in this order; the name of a model
            on the hub, "gpt2" or "owner/name"; or "transformers:" and a folder or name on the hub, for the tokenizer
            of a pretrained encoder, which adds the encoder's special tokens to every text.

    Raises:
        FileNotFoundError: neither a file, nor a folder, nor a model on the hub has this name.
        UserError: the file or folder does not contain a tokenizer, or is damaged.
    """
    # A built-in name comes first, then a file or folder, then a model on the hub.
    if is_project_weights(str(path_or_name)):  # the tokenizer in the checkpoint, or next to the weights
        weights = Path(find_weights(str(path_or_name)))
        path_or_name = weights if weights.suffix == ".ckpt" else adjacent_tokenizer(weights) or weights
    path_or_name = str(path_or_name)
    if path_or_name in _NAMED:
        return _NAMED[path_or_name]()
    if path_or_name.startswith(PREFIX):
        return load_encoder_tokenizer(path_or_name.removeprefix(PREFIX))
    path = copy_with_neighbours(path_or_name, "--data.tokenizer") if is_url(path_or_name) else Path(path_or_name)
    if not path.exists():
        path = _from_hub(path_or_name)
    try:
        if not path.is_dir() and not path.is_file():
            raise UserError("it is neither a file nor a folder, but a device or a pipe")
        path = next((path / name for name in _IN_CHECKPOINTS if (path / name).is_file()), path)
        tokenizer = _load_folder(path) if path.is_dir() else _load_file(path)
    except ValueError as error:
        # JSON's and Unicode's errors describe positions in the file; they only mean that the kind is unknown.
        reason = _UNKNOWN if isinstance(error, UnicodeDecodeError) else error
        raise UserError(f"{path} cannot be used as a tokenizer: {reason}") from error
    tokenizer.source = str(path)
    return tokenizer


def has_tokenizer(folder: Path) -> bool:
    """Whether `load_tokenizer` finds a tokenizer's file in a folder."""
    return any((folder / name).is_file() for name in _FOLDER_FILES)


def adjacent_tokenizer(path: Path) -> Path | None:
    """The only tokenizer in a Hugging Face folder or next to a llama2.c file; None if there is none or several."""
    if path.is_dir():
        tokenizers = [path] if has_tokenizer(path) else []
    else:
        tokenizers = [*path.parent.glob("tok*.bin"), *path.parent.glob("*.model")]
    return tokenizers[0] if len(tokenizers) == 1 else None


def from_state(state: State) -> Tokenizer:
    """The tokenizer with this `state()`.

    Raises:
        UserError: the state is damaged or of an unknown kind.
    """
    damaged = UserError("the checkpoint's tokenizer is damaged: use another checkpoint, or give the tokenizer")
    if not isinstance(state, dict):
        raise damaged
    kind, model = state.get("kind"), state.get("model")
    if isinstance(kind, str) and kind in _NAMED:
        return _NAMED[kind]()
    kinds = (SentencePieceTokenizer.kind, Llama2cTokenizer.kind, HuggingFaceTokenizer.kind, EncoderTokenizer.kind)
    if kind not in kinds:
        raise UserError(
            f"the checkpoint's tokenizer is of the unknown kind {kind!r:.40}: update the zoo, or give another file"
        )
    bos, eos, adds_bos = state.get("bos_id"), state.get("eos_id"), state.get("adds_bos", 1)
    are_ids = all(i is None or type(i) is int for i in (bos, eos))
    if not isinstance(model, str) or not are_ids or adds_bos not in (0, 1):
        raise damaged
    if kind == HuggingFaceTokenizer.kind:
        return HuggingFaceTokenizer(model, bos, eos, bool(adds_bos))  # type: ignore[arg-type]
    if kind == EncoderTokenizer.kind:
        return EncoderTokenizer(model)
    # Binary models are stored as base64.
    try:
        data = base64.b64decode(model, validate=True)
    except ValueError:
        raise damaged from None
    return Llama2cTokenizer(data) if kind == Llama2cTokenizer.kind else SentencePieceTokenizer(data, bool(adds_bos))


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
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return _load_file(folder / name)
    raise UserError(f"the folder contains none of {', '.join(_FOLDER_FILES)}")


def _load_file(file: Path) -> Tokenizer:
    """The tokenizer in a file, whose kind is recognised by its content."""
    # A zip archive is a checkpoint by torch.save.
    with file.open("rb") as content:
        if content.read(4) == b"PK\3\4" or file.name == _EXPORTED:
            return _from_checkpoint(file)
    data = file.read_bytes()
    if not data:
        raise UserError("the file is empty; download it again")
    # JSON is a tokenizer.json or a vocabulary of GPT-2, which needs its merges.
    if data.lstrip()[:1] == b"{":
        try:
            entries = parse_object(data)
        except ValueError as error:
            raise UserError(f"{_UNKNOWN} ({describe_json_error(error)})") from None
        if isinstance(entries.get("model"), dict):
            return read_tokenizer_json(file)
        return _load_gpt2(file, is_vocabulary=True)
    if data.startswith(b"#version") or file.name.endswith(tuple(_PARTNERS.values())):
        return _load_gpt2(file, is_vocabulary=False)
    # Binary: llama2.c's format is recognised by its fixed first tokens; otherwise the file must be SentencePiece's.
    try:
        return Llama2cTokenizer(data)
    except OtherFormat:
        pass
    try:
        tokenizer = SentencePieceTokenizer(data)
    except OtherFormat:
        raise UserError(_UNKNOWN) from None
    # The name follows Hugging Face's folders, where a configuration file can turn BOS off.
    if file.name == "tokenizer.model":
        settings = read_settings(file.parent)
        check_added_tokens(file.parent, tokenizer.vocab_size)
        tokenizer.adds_bos = settings.get("add_bos_token", settings.get("bos_token", "") is not None)
    return tokenizer


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
    # Imported here, because both modules import torch.
    from zoo.files.safetensors_checkpoints import read_content
    from zoo.files.torch_files import read_torch_file

    checkpoint = read_content(file.parent) if file.name == _EXPORTED else read_torch_file(file, mmap=True)
    state = checkpoint.get("tokenizer") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise UserError("it is a checkpoint without a tokenizer; give the tokenizer's file")
    return from_state(state)
