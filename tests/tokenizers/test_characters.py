"""CharacterTokenizer: fixed ids, lossless for printable ASCII, <unk> for other characters."""

import string

import numpy as np
import pytest
import torch

from zoo.errors import UserError
from zoo.tokenizers import from_state, load_tokenizer, stream_decode


@pytest.fixture
def characters():
    return load_tokenizer("characters")


def test_ids_equal_upstream_regress_lm(characters):
    assert characters.tokens[:4] == ("<pad>", "<unk>", "\t", "\n")
    assert characters.tokens[4:] == tuple(chr(code) for code in range(0x20, 0x7F))
    assert characters.vocab_size == len(characters.tokens) == len(set(characters.tokens)) == 99
    assert characters.encode("\t ~") == [2, 4, 98]
    assert characters.bos_id is None
    assert characters.eos_id is None


def test_printable_ascii_is_lossless(characters):
    text = "".join(sorted(set(string.printable) - set("\r\x0b\x0c")))
    assert len(text) == 97
    ids = characters.encode(text, bos=True, eos=True)
    assert ids == list(range(2, 99))  # in the order of the character codes
    assert characters.decode(ids) == text == "".join(stream_decode(characters, ids))


def test_other_characters_are_unk_and_not_pad(characters):
    assert characters.encode("aé日\r\0") == [characters.encode("a")[0], 1, 1, 1, 1]
    assert characters.decode([1, 0, 69]) == "\ufffda"
    assert characters.encode("") == []


def test_state_restores_the_tokenizer(characters):
    again = from_state(characters.state())
    assert type(again) is type(characters)
    assert again.fingerprint == characters.fingerprint != load_tokenizer("bytes").fingerprint


@pytest.mark.parametrize("name", ["characters", "bytes"])
def test_arguments_of_other_types_are_refused(name):
    tokenizer = load_tokenizer(name)
    for text in (3, None, b"a", ["a"]):
        with pytest.raises(UserError, match=f"a tokenizer encodes texts, not a {type(text).__name__}"):
            tokenizer.encode(text)
    for ids in ([1.5], 3, None, [[60]], "60", torch.tensor([60.0])):
        with pytest.raises(UserError, match="a tokenizer decodes a list of whole numbers, not "):
            tokenizer.decode(ids)
    ids = tokenizer.encode("ab", bos=False)
    assert tokenizer.decode(torch.tensor(ids)) == tokenizer.decode(np.array(ids)) == tokenizer.decode(iter(ids)) == "ab"
