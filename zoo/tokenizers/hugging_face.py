"""Tokenizers of the `tokenizers` library: a `tokenizer.json`, GPT-2's vocabulary and merges, a BPE trained here.

Byte-level BPE: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.text_formats.json_text import read_object
from zoo.tokenizers.base import State, Tokenizer
from zoo.tokenizers.tokenizer_json import (
    HIDDEN,
    check_ids,
    control_tokens,
    damaged,
    leading_ids,
    parse,
    token_ids,
    without_control_tokens,
)

DOCUMENT = "<|endoftext|>"  # GPT-2's special token, which starts and ends a document; also used by `train_bpe`
UNKNOWN = "<unk>"
# Names of BOS and EOS, tried in this order if no configuration file names them.
_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]", DOCUMENT)
_EOS_NAMES = ("</s>", "<|end_of_text|>", "<eos>", "[EOS]", DOCUMENT)


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer from the text of a `tokenizer.json`.

    The name of a special token within a text is encoded like any other text, as transformers does with
    `split_special_tokens=True` (its default encodes it as that token): only the arguments `bos` and `eos` of `encode`
    add special tokens. Truncation, padding and BPE dropout are turned off.

    Args:
        description: the text of a `tokenizer.json`.
        bos_id: id of the token that starts a document; None for none.
        eos_id: id of the token that ends a document; None for none.
        adds_bos: whether `encode` starts a text with BOS.

    Raises:
        UserError: the text does not describe a tokenizer.
    """

    kind = "huggingface"
    description: str
    """The text of the `tokenizer.json`."""

    def __init__(self, description: str, bos_id: int | None, eos_id: int | None, adds_bos: bool = True) -> None:
        self.description, self.bos_id, self.eos_id, self.adds_bos = description, bos_id, eos_id, adds_bos
        content = parse(description)
        ids = token_ids(content)
        control = control_tokens(content, bos_id, eos_id)
        self._control_ids = {ids[name] for name in control}
        # Models that compare a text with all names could find a hidden one; a BPE forms its tokens by merges instead.
        model = content["model"]
        compares_names = not model.get("merges") or model.get("ignore_merges") is True
        self._replaces_hidden = compares_names and not control.isdisjoint(token_ids({"model": model}))
        plain = json.dumps(without_control_tokens(content, control))
        self._tokenizer = guarded(
            lambda: tokenizers_library().Tokenizer.from_str(plain),
            "its tokenizer.json cannot be read",
            "; download it again",
        )
        self._tokenizer.encode_special_tokens = True
        for token in content.get("added_tokens") or []:
            # The library ignores the ids of added tokens in the file and numbers them itself.
            name = token["content"]
            if ids[name] != self._tokenizer.token_to_id(HIDDEN + name if name in control else name):
                raise damaged(f"the id {ids[name]} of the added token {name!r} does not continue the vocabulary")
        self.tokens: dict[str, int] = ids
        """Token -> id."""
        # As `train_words` makes it.
        is_of_words = model.get("type") == "WordLevel" and model.get("unk_token") == UNKNOWN
        self._unknown_id = ids.get(UNKNOWN) if is_of_words else None
        self.vocab_size = max(ids.values(), default=-1) + 1
        if not self.vocab_size:
            raise damaged("its vocabulary is empty")
        for key, i in (("BOS", bos_id), ("EOS", eos_id)):
            if i is not None and not 0 <= i < self.vocab_size:
                raise UserError(f"the id {i} of its {key} is outside its vocabulary of {self.vocab_size} tokens")

    def state(self) -> State:
        state: State = {"kind": self.kind, "model": self.description, "bos_id": self.bos_id, "eos_id": self.eos_id}
        return state if self.adds_bos else state | {"adds_bos": 0}

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if self._replaces_hidden:
            texts = [text.replace(HIDDEN, "\ufffd") for text in texts]
        encodings = guarded(
            lambda: self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False),
            f"{self.source} cannot encode a text",
        )
        ids = [encoding.ids for encoding in encodings]
        return ids if self._unknown_id is None else self._with_last_words(texts, ids)

    def _with_last_words(self, texts: Sequence[str], ids: list[list[int]]) -> list[list[int]]:
        """The ids, with that of "WORD," for an unknown last word WORD of a text.

        A row whose last columns are unknown ends with a word that has a comma in all other rows.
        """
        for text, row in zip(texts, ids, strict=True):
            if row and row[-1] == self._unknown_id:
                row[-1] = self.tokens.get(f"{text.split()[-1]},", row[-1])
        return ids

    def _decode(self, ids: list[int]) -> str:
        ids = [i for i in ids if i not in self._control_ids]
        return guarded(lambda: self._tokenizer.decode(ids), f"{self.source} cannot decode tokens")


def guarded(call: Callable[[], Any], fault: str, remedy: str = "") -> Any:
    """The result of a call of the `tokenizers` library; UserError with `fault`, the reason and `remedy` if it fails."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exceptions, and for its own faults a BaseException
        reason = (str(error).strip().splitlines() or ["of no stated reason"])[0][:200]
        raise UserError(f"{fault} ({reason}){remedy}") from None


def train_bpe(texts: Iterable[str], vocab_size: int) -> HuggingFaceTokenizer:
    """Train a byte-level BPE; equal texts give equal tokenizers.

    Token 0 starts and ends documents, and the 256 bytes follow, so that every text can be encoded.

    Args:
        texts: the training texts.
        vocab_size: largest number of tokens, at least 257.

    Raises:
        UserError: vocab_size is less than 257.
    """
    if vocab_size < 257:
        raise UserError(
            f"a byte-level BPE needs at least 257 tokens, not {vocab_size}: set --data.bpe_vocab_size to at least 257"
        )
    # Train on the bytes of the texts, with the document token as token 0 and all 256 bytes in the vocabulary.
    library = tokenizers_library()
    tokenizer = _byte_level(library.models.BPE())
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[DOCUMENT],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return HuggingFaceTokenizer(tokenizer.to_str(), bos_id=0, eos_id=0)


def train_words(texts: Iterable[str]) -> HuggingFaceTokenizer:
    """A tokenizer with one token per word (text between white space) of `texts`; any other word is token 0, <unk>.

    An unknown last word of a text is read as the same word with a comma, if that is known.
    """
    library = tokenizers_library()
    # Sorted, so that equal texts give equal ids.
    words = sorted({word for text in texts for word in text.split()} - {UNKNOWN})
    vocabulary = {word: i for i, word in enumerate([UNKNOWN, *words])}
    tokenizer = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    return HuggingFaceTokenizer(tokenizer.to_str(), bos_id=None, eos_id=None)


def read_gpt2(vocab: Path, merges: Path) -> HuggingFaceTokenizer:
    """A tokenizer from GPT-2's two files: the vocabulary (JSON, token to id) and the merges (one per line, first to
    last).

    Raises:
        UserError: the files do not belong together.
    """
    # The vocabulary gives the ids, and the order of the merges their priority.
    ids, lines = read_object(vocab), merges.read_text(encoding="utf-8").splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise UserError(f"a line of {merges.name} is not a pair of tokens separated by a space; download it again")
    check_ids(ids, vocab.stat().st_size, vocab.name)
    fault = f"{vocab.name} and {merges.name} are not of the same vocabulary"
    model = guarded(lambda: tokenizers_library().models.BPE(vocab=ids, merges=pairs), fault)
    # GPT-2's document token both starts and ends a text.
    document = ids.get(DOCUMENT)
    tokenizer = _byte_level(model)
    if document is not None:
        tokenizer.add_special_tokens([DOCUMENT])
    return HuggingFaceTokenizer(tokenizer.to_str(), document, document)


def read_tokenizer_json(file: Path) -> HuggingFaceTokenizer:
    """A tokenizer from a `tokenizer.json`, with the settings of BOS and EOS in its folder.

    `encode` starts a text with BOS as transformers does: if `add_bos_token` in tokenizer_config.json is true, or if
    that is not set, if the post-processor in the file adds it. A file without post-processor and without configuration
    files starts it with BOS if the vocabulary has a usual name for it.

    Raises:
        UserError: a file is damaged.
    """
    description = file.read_text(encoding="utf-8")
    content = parse(description)
    # The names of BOS and EOS: configured ones, else the first usual name that the vocabulary has.
    settings = read_settings(file.parent)
    ids = token_ids(content)

    def first_id(key: str, usual_names: tuple[str, ...]) -> int | None:
        # A configured name of null means that the token does not exist.
        names = (settings[key],) if key in settings else usual_names
        return next((ids[name] for name in names if name in ids), None)

    bos_id, eos_id = first_id("bos_token", _BOS_NAMES), first_id("eos_token", _EOS_NAMES)
    leading = leading_ids(content)
    has_config = bool(settings) or (file.parent / "tokenizer_config.json").is_file()
    is_bare = content.get("post_processor") is None and not has_config
    adds_bos = settings.get("add_bos_token", is_bare if leading is None else bool(leading))
    if adds_bos and leading:
        if len(leading) > 1:
            raise UserError(f"its post_processor puts {len(leading)} tokens before a text; only one is supported")
        bos_id = leading[0]
    tokenizer = HuggingFaceTokenizer(description, bos_id, eos_id, adds_bos)
    check_added_tokens(file.parent, tokenizer.vocab_size)
    return tokenizer


def check_added_tokens(folder: Path, vocab_size: int) -> None:
    """Check that tokenizer_config.json and added_tokens.json add no token to the tokenizer's file.

    Special tokens do not matter, because no text is encoded as one of them.

    Raises:
        UserError: a token is added, or a file is damaged.
    """
    added: dict[str, Any] = {}
    if (file := folder / "added_tokens.json").is_file():
        added |= read_object(file)
    special: set[str] = set()
    if (file := folder / "tokenizer_config.json").is_file():
        for key, value in read_object(file).items():
            special |= {value} if key.endswith("_token") and isinstance(value, str) else set()
            if key == "added_tokens_decoder" and isinstance(value, dict):
                for i, token in value.items():
                    if not i.isdecimal() or not isinstance(token, dict) or not isinstance(token.get("content"), str):
                        raise UserError("added_tokens_decoder in tokenizer_config.json is damaged; download it again")
                    special |= {token["content"]} if token.get("special") else set()
                    added[token["content"]] = int(i[:18])
    for name, i in added.items():
        if not isinstance(i, int) or (i >= vocab_size and name not in special):
            raise UserError(
                f"its folder adds the token {name!r:.40} to the {vocab_size} tokens of the tokenizer's file: load the "
                "folder with transformers' AutoTokenizer and save it again, which writes all tokens to tokenizer.json"
            )


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of BOS and EOS in the configuration files of a folder: bos_token, eos_token, add_bos_token.

    Raises:
        UserError: a configuration file is damaged.
    """
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the second has precedence
        if not (file := folder / name).is_file():
            continue
        for key, value in read_object(file).items():
            token = value.get("content") if isinstance(value, dict) else value
            if key in ("bos_token", "eos_token"):
                if not (token is None and value is None) and not isinstance(token, str):
                    raise UserError(f"{key} in {name} is neither a token nor null; download the file again")
                settings[key] = token
            elif key == "add_bos_token" and value is not None:
                if not isinstance(value, bool):
                    raise UserError(f"add_bos_token in {name} is neither true nor false; download the file again")
                settings[key] = value
    return settings


def _byte_level(model):
    """A tokenizer of the library that encodes bytes with `model`, without adding a space before the text."""
    library = tokenizers_library()
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def tokenizers_library():
    """The `tokenizers` library, with one thread unless the user sets more, because threads do not survive a fork."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers
