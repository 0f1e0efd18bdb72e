"""Tokenizers as Hugging Face's `tokenizer.json` and `tokenizer_config.json`, which AutoTokenizer reads.

The exported tokenizer gives the ids of the zoo's `encode`: BOS in front where that adds it, and names of special tokens
within a text encoded like any other text.
"""

import json
import re
from typing import Any

from zoo.errors import UserError
from zoo.export.pieces import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Pieces,
    pieces_of,
)
from zoo.tokenizers import Tokenizer
from zoo.tokenizers.byte_level import ByteTokenizer
from zoo.tokenizers.characters import CharacterTokenizer
from zoo.tokenizers.hugging_face import DOCUMENT, HuggingFaceTokenizer, guarded, tokenizers_library
from zoo.tokenizers.llama2c import Llama2cTokenizer
from zoo.tokenizers.tokenizer_json import control_tokens, parse, token_ids, without_control_tokens

# Texts on which an export is compared with the tokenizer.
SAMPLES = (
    "Once upon a time, there was a tree.", " leading and  double   spaces ", "\tdef f(x):\n    return x ** 2\r\n\n",
    "3.14159 -1e-05 1,000 2026-11-26", "naïve Straße ΑΒΓ привет 東京 عربى",
    "\U0001f642\u200d\u2581\ufb01 e\u0301\u3000x",
    "<s> [INST] </s> <unk> <|endoftext|> <0x41>", "a", "",
)  # fmt: skip
REMEDY = "use --format safetensors, or --data.tokenizer none to leave the tokenizer out"


def tokenizer_files(tokenizer: Tokenizer, max_len: int | None = None) -> dict[str, str]:
    """File name -> text of the files that transformers' AutoTokenizer and `load_tokenizer` read.

    Args:
        tokenizer: the tokenizer.
        max_len: longest context of the model in tokens; None: unlimited.

    Raises:
        UserError: the tokenizer is of a kind, or has rules, that the files cannot express.
    """
    content = _content(tokenizer)
    ids = token_ids(content)
    names = {i: name for name, i in ids.items()}
    bos, eos = (None if i is None else names[i] for i in (tokenizer.bos_id, tokenizer.eos_id))
    adds_bos = bool(tokenizer.leading_ids)
    content |= {"truncation": None, "padding": None, "post_processor": _template(bos, ids) if adds_bos else None}
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "add_bos_token": adds_bos,
        "add_eos_token": False,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    if max_len is not None:
        config["model_max_length"] = max_len
    _compare(tokenizer, content)
    return {
        "tokenizer.json": json.dumps(content, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, indent=2) + "\n",
    }


def _content(tokenizer: Tokenizer) -> dict[str, Any]:
    """The object of a tokenizer.json, without what concerns complete documents."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return _without_merged_control(tokenizer)
    if isinstance(tokenizer, ByteTokenizer):
        return _bytes()
    if isinstance(tokenizer, CharacterTokenizer):
        return _characters(tokenizer)
    if (pieces := pieces_of(tokenizer)) is not None:
        if isinstance(tokenizer, Llama2cTokenizer):  # where U+2581 is a character like others
            pieces = pieces._replace(texts=[text.replace(SPACE, " ") for text in pieces.texts], space=" ")
        if USER_DEFINED in pieces.types:
            symbol = pieces.texts[pieces.types.index(USER_DEFINED)]
            raise UserError(
                f"tokenizer.json cannot express the user-defined symbol {symbol!r} of {tokenizer.source}: {REMEDY}"
            )
        return json.loads((_unigram if pieces.is_unigram else _byte_pairs)(pieces).to_str())
    raise UserError(f"a tokenizer of the kind {tokenizer.kind!r} cannot be written as tokenizer.json: {REMEDY}")


def _template(bos: str | None, ids: dict[str, int]) -> dict[str, Any]:
    """The post-processor that puts BOS before a text."""
    assert bos is not None  # leading_ids has it
    start: list[dict[str, Any]] = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    tokens = {bos: {"id": bos, "ids": [ids[bos]], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": start, "pair": [*start, *second], "special_tokens": tokens}


def _compare(tokenizer: Tokenizer, content: dict[str, Any]) -> None:
    """Raises UserError if the tokenizer in a tokenizer.json gives other ids than `tokenizer` for one of SAMPLES."""
    backend = tokenizers_library().Tokenizer.from_str(json.dumps(content))
    backend.encode_special_tokens = True
    encodings = guarded(lambda: backend.encode_batch(list(SAMPLES)), f"{tokenizer.source} cannot encode a text")
    for text, encoding in zip(SAMPLES, encodings, strict=True):
        if encoding.ids != tokenizer.encode(text):
            raise UserError(
                f"tokenizer.json cannot express the rules of {tokenizer.source}, as for the text {text!r}: {REMEDY}"
            )


# ---- one function per kind


def _without_merged_control(tokenizer: HuggingFaceTokenizer) -> dict[str, Any]:
    """The tokenizer's own description, without dropout and without merges that build the name of a control token."""
    content = parse(tokenizer.description)
    control = control_tokens(content, tokenizer.bos_id, tokenizer.eos_id)
    hidden = without_control_tokens(content, control)["model"]
    model = content["model"] | {name: hidden[name] for name in ("merges", "dropout") if name in hidden}
    return content | {"model": model}


def _bytes() -> dict[str, Any]:
    """A byte-level BPE without merges: token i is byte i, and 256 the document token."""
    library = tokenizers_library()
    vocabulary = {character: byte for byte, character in enumerate(byte_characters())} | {DOCUMENT: 256}
    backend = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = library.decoders.ByteLevel()
    backend.add_special_tokens([DOCUMENT])
    return json.loads(backend.to_str())


def _characters(tokenizer: CharacterTokenizer) -> dict[str, Any]:
    """A word-level model in which each character is a word."""
    library = tokenizers_library()
    vocabulary = {token: i for i, token in enumerate(tokenizer.tokens)}
    padding, unknown = tokenizer.tokens[:2]
    backend = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token=unknown))
    backend.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(r"[\s\S]"), "isolated")
    decoders = library.decoders
    backend.decoder = decoders.Sequence(
        [decoders.Replace(padding, ""), decoders.Replace(unknown, "\ufffd"), decoders.Fuse()]
    )
    return json.loads(backend.to_str())


def _byte_pairs(pieces: Pieces) -> Any:
    """A BPE of the `tokenizers` library with the merges that the scores imply."""
    library = tokenizers_library()
    ids = {text: i for i, text in enumerate(pieces.texts)}
    parts = set(pieces.named(NORMAL, UNUSED))
    # A merge into a piece with a higher score comes first; splits of one piece in the order of their positions.
    merges = [
        (-pieces.scores[i], i, at)
        for text, i in ids.items()
        if pieces.types[i] == NORMAL
        for at in range(1, len(text))
        if text[:at] in parts and text[at:] in parts
    ]
    pairs = [(pieces.texts[i][:at], pieces.texts[i][at:]) for _, i, at in sorted(merges)]
    model = library.models.BPE(
        vocab=ids, merges=pairs, unk_token=_unknown(pieces), fuse_unk=True, byte_fallback=BYTE in pieces.types
    )
    return _with_rules(library.Tokenizer(model), pieces)


def _unigram(pieces: Pieces) -> Any:
    """A unigram model of the `tokenizers` library."""
    library = tokenizers_library()
    entries = list(zip(pieces.texts, pieces.scores, strict=True))
    unknown = pieces.types.index(UNKNOWN)
    model = library.models.Unigram(entries, unk_id=unknown, byte_fallback=BYTE in pieces.types)
    backend = library.Tokenizer(model)
    # The library would find the names of special tokens and bytes in texts: cut the text inside each such name.
    cuts = "|".join(_cut(name, pieces) for name in pieces.named(UNKNOWN, CONTROL) if len(name) > 1)
    cuts += r"|<(?=0x[0-9A-F]{2}>)" if BYTE in pieces.types else ""
    backend.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(cuts), "merged_with_previous")
    return _with_rules(backend, pieces)


def _cut(name: str, pieces: Pieces) -> str:
    """A regular expression for the start of a name in a text, which ends where neither a piece nor an unknown part,
    of any number of unknown characters, continues."""
    ordinary = pieces.named(NORMAL)
    known = {text for text in ordinary if len(text) == 1}
    ends = (
        at
        for at in range(1, len(name))
        if not known.isdisjoint(name[at - 1 : at + 1]) and not any(name[at - 1 : at + 1] in text for text in ordinary)
    )
    at = next(ends, 1)
    return f"{re.escape(name[:at])}(?={re.escape(name[at:])})"


def _with_rules(backend: Any, pieces: Pieces) -> Any:
    """Add SentencePiece's normalization, its special tokens, and the decoder that reverses both."""
    library = tokenizers_library()
    normalizers, decoders = library.normalizers, library.decoders
    steps: list[Any] = [normalizers.Precompiled(pieces.charsmap)] if pieces.charsmap else []
    if pieces.removes_spaces:
        steps += [normalizers.Replace(library.Regex(rule), kept) for rule, kept in ((r"\A +| +\z", ""), (" {2,}", " "))]
    if pieces.adds_space:
        steps.append(normalizers.Prepend(pieces.space))
    decoding: list[Any] = [decoders.ByteFallback(), decoders.Fuse()]
    if pieces.space == SPACE:  # of SentencePiece, whose text for an unknown character is U+2047 between spaces
        steps.append(normalizers.Replace(" ", SPACE))
        if pieces.removes_spaces:
            steps.append(normalizers.Replace(library.Regex(f"{SPACE}+\\z"), ""))
        decoding = [decoders.Replace(SPACE, " "), decoders.Replace(_unknown(pieces), " \u2047 "), *decoding]
    if pieces.adds_space or pieces.removes_spaces:
        decoding.append(decoders.Strip(" ", 1, 0))
    backend.normalizer, backend.decoder = normalizers.Sequence(steps), decoders.Sequence(decoding)
    special = [library.AddedToken(text, normalized=False) for text in pieces.named(CONTROL)]
    backend.add_special_tokens(special)
    return backend


def _unknown(pieces: Pieces) -> str:
    return pieces.texts[pieces.types.index(UNKNOWN)]


def byte_characters() -> list[str]:
    """The characters by which byte-level tokenizers write the bytes 0 to 255, as GPT-2 does.

    A byte that is a visible character of Latin-1 maps to it; the others map to the code points from 256 on, in order.
    """
    others = iter(range(256, 512))
    return [chr(byte) if re.match(r"[!-~¡-¬®-ÿ]", chr(byte)) else chr(next(others)) for byte in range(256)]
