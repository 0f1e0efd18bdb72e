"""The cache of packed text and trained tokenizers: damage is recognised and repaired."""

import json
import pickle
import re

import pytest

from zoo.datamodules import TextLM, checksums, packing
from zoo.errors import UserError


def _tokens_file(tmp_path, kind="bin"):
    return next((tmp_path / "cache" / "tokens").glob(f"*/train.{kind}"))


@pytest.mark.parametrize("damage", ["a changed byte", "cut", "missing", "counts", "old counts", "no JSON"])
def test_a_damaged_cache_is_written_again(tmp_path, capsys, damage):
    text = tmp_path / "text.txt"
    text.write_text("some words in a row\n" * 500)

    def tokens():
        lm = TextLM(str(text), seq_len=8, cache_dir=str(tmp_path / "cache"))
        return lm.tokens("train").copy(), lm.stats("train")

    before, stats = tokens()
    file, counts = _tokens_file(tmp_path), _tokens_file(tmp_path, "json")
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    if damage == "a changed byte":
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "missing":
        file.unlink()
    else:
        changed = {"counts": json.loads(counts.read_text()) | {"tokens": 7}, "old counts": stats}
        counts.write_text(json.dumps(changed[damage]) if damage in changed else '{"tokens": ')
    capsys.readouterr()
    after, stats_after = tokens()
    assert (after == before).all()
    assert stats_after == stats
    assert re.search(r"train\.json in the cache is damaged \(.+\): it is written again", capsys.readouterr().err)
    tokens()
    assert capsys.readouterr().err == ""


def test_of_a_large_cache_the_parts_that_are_read_are_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "CHECKED_AT_START", 0)
    monkeypatch.setattr(checksums, "CHUNK_BYTES", 1000)
    text = tmp_path / "text.txt"
    text.write_text("some words in a row\n" * 500)

    def windows():
        return TextLM(str(text), seq_len=8, cache_dir=str(tmp_path / "cache")).dataset("train")

    expected = [window.tokens.tolist() for window in map(windows().__getitem__, range(len(windows())))]
    content = bytearray(_tokens_file(tmp_path).read_bytes())
    content[2500] ^= 1
    _tokens_file(tmp_path).write_bytes(content)
    damaged = pickle.loads(pickle.dumps(windows()))
    assert damaged[100].tokens.tolist() == expected[100]  # bytes 1600 to 1618
    with pytest.raises(UserError, match=r"train\.bin in the cache is damaged: start again"):
        damaged[156]  # bytes 2496 to 2514
    assert [window.tokens.tolist() for window in map(windows().__getitem__, range(len(windows())))] == expected


def test_a_damaged_tokenizer_in_the_cache_is_trained_again(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("some words in a row\n" * 500)

    def state():
        return TextLM(str(text), "bpe", bpe_vocab_size=270, cache_dir=str(tmp_path / "cache")).tokenizer.state()

    before = state()
    [file] = (tmp_path / "cache" / "bpe").glob("*.json")
    for content in (file.read_bytes().replace(b"word", b"ward"), b"{}", b"\xff"):
        assert content != file.read_bytes()
        file.write_bytes(content)
        capsys.readouterr()
        assert state() == before
        assert "in the cache is damaged (its digest is wrong): it is written again" in capsys.readouterr().err
