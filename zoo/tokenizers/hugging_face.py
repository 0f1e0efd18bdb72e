"""Tokenizers of the `tokenizers` library: a `tokenizer.json`, GPT-2's vocabulary and merges, a BPE trained here.

Byte-level BPE: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from zoo.errors import UserError
from zoo.tokenizers.base import State, Tokenizer

DOCUMENT = "<|endoftext|>"  # GPT-2's special token, which starts and ends a document; also used by `train_bpe`
_UNKNOWN = "<unk>"
# Names of BOS and EOS, tried in this order if no configuration file names them.
_BOS_NAMES = ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]", DOCUMENT)
_EOS_NAMES = ("</s>", "<|end_of_text|>", "<eos>", "[EOS]", DOCUMENT)


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer from the text of a `tokenizer.json`.

    The name of a special token within a text is encoded like any other text: only the arguments `bos` and `eos` of
    `encode` add special tokens.

    Args:
        description: the text of a `tokenizer.json`.
        bos_id: id of the token that starts a document; None for none.
        eos_id: id of the token that ends a document; None for none.

    Raises:
        UserError: the text does not describe a tokenizer.
    """

    kind = "huggingface"

    def __init__(self, description: str, bos_id: int | None, eos_id: int | None) -> None:
        self._description, self.bos_id, self.eos_id = description, bos_id, eos_id
        try:
            self._tokenizer = _library().Tokenizer.from_str(description)
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"its tokenizer.json cannot be read ({error}); download it again") from error
        # A tokenizer.json may contain settings that change ids; turn them off.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1

    def state(self) -> State:
        return {"kind": self.kind, "model": self._description, "bos_id": self.bos_id, "eos_id": self.eos_id}

    def _encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


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
    library = _library()
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
    """A tokenizer with one token per word (text between white space) of `texts`; any other word is token 0, <unk>."""
    library = _library()
    # Sorted, so that equal texts give equal ids.
    words = sorted({word for text in texts for word in text.split()} - {_UNKNOWN})
    vocabulary = {word: i for i, word in enumerate([_UNKNOWN, *words])}
    tokenizer = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    return HuggingFaceTokenizer(tokenizer.to_str(), bos_id=None, eos_id=None)


def read_gpt2(vocab: Path, merges: Path) -> HuggingFaceTokenizer:
    """A tokenizer from GPT-2's two files: the vocabulary (JSON, token to id) and the merges (one per line, first to
    last).

    Raises:
        UserError: the files do not belong together.
    """
    # The vocabulary gives the ids, and the order of the merges their priority.
    ids = json.loads(vocab.read_text(encoding="utf-8"))
    lines = merges.read_text(encoding="utf-8").splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    try:
        model = _library().models.BPE(vocab=ids, merges=pairs)
    except Exception as error:
        raise UserError(f"{vocab.name} and {merges.name} are not of the same vocabulary ({error})") from error
    # GPT-2's document token both starts and ends a text.
    document = ids.get(DOCUMENT)
    tokenizer = _byte_level(model)
    if document is not None:
        tokenizer.add_special_tokens([DOCUMENT])
    return HuggingFaceTokenizer(tokenizer.to_str(), document, document)


def read_tokenizer_json(file: Path) -> HuggingFaceTokenizer:
    """A tokenizer from a `tokenizer.json`. BOS and EOS are named by configuration files in the same folder, if any."""
    description = file.read_text(encoding="utf-8")
    # The names of BOS and EOS: configured ones, else the first usual name that the vocabulary has.
    configured: dict[str, str | None] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the second has precedence
        if (config := file.parent / name).is_file():
            for key, token in json.loads(config.read_text(encoding="utf-8")).items():
                if key in ("bos_token", "eos_token"):
                    configured[key] = token["content"] if isinstance(token, dict) else token
    token_to_id = HuggingFaceTokenizer(description, None, None)._tokenizer.token_to_id

    def first_id(key: str, usual_names: tuple[str, ...]) -> int | None:
        # A configured name of null means that there is no such token.
        names = (configured[key],) if key in configured else usual_names
        return next((i for name in names if name is not None and (i := token_to_id(name)) is not None), None)

    return HuggingFaceTokenizer(description, first_id("bos_token", _BOS_NAMES), first_id("eos_token", _EOS_NAMES))


def _byte_level(model):
    """A tokenizer of the library that encodes bytes with `model`, without adding a space before the text."""
    library = _library()
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    return tokenizer


def _library():
    """The `tokenizers` library, with one thread unless the user sets more, because threads do not survive a fork."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import tokenizers

    return tokenizers
