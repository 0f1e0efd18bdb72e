"""Tokenizers of words that fall back to bytes."""

from zoo.datamodules.synthetic_tables import number_words
from zoo.tokenizers import from_state
from zoo.tokenizers.numerals import rounded
from zoo.tokenizers.word_pieces import make_word_pieces, with_words


def test_every_rounded_number_is_two_tokens():
    tokenizer = make_word_pieces(number_words(2))
    for number in (0, 1, -1, 0.00041, 999.9, -7.5e-20, 123456789, 1e30, -0.0):
        text = rounded(f"{number}, {number}", 2, powers=True)
        assert len(tokenizer.encode(text)) == 4, text
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_other_words_become_their_longest_known_parts_and_bytes():
    tokenizer = make_word_pieces(["width:", "red"])
    ids = tokenizer.tokens
    assert tokenizer.encode("width: reddish") == [ids["width:"], ids["red"], *(ids["##" + c] for c in "dish")]
    assert ids["<unk>"] not in tokenizer.encode("größe: 木 \x00 \U0001f600")


def test_added_words_keep_the_ids_of_the_others():
    tokenizer = make_word_pieces(["width:"])
    more = with_words(tokenizer, ["width: blue größe:", "blue größe: once"])
    assert {word: i for word, i in more.tokens.items() if word in tokenizer.tokens} == tokenizer.tokens
    assert more.encode("blue größe:") == [tokenizer.vocab_size, tokenizer.vocab_size + 1]
    assert len(more.encode("once")) == 4
    assert with_words(more, ["blue blue"]) is None
    assert from_state(more.state()).encode("blue once") == more.encode("blue once")
