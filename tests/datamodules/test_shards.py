"""Large texts: shards packed in parallel and after a kill, splits within rows, and starts that do not read the text."""

import json
import os
import re
from itertools import islice

import pytest

from zoo.datamodules import TextLM, checksums, packing
from zoo.datamodules.sources import corpus, spans
from zoo.errors import UserError

LINES = [f"{i} naïve cats\r\n" if i % 3 else f"    {i} 日本\n" if i % 2 else "\n" for i in range(200)]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that makes a TextLM whose parts have a given size."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow on a busy disk, and there are many small shards here
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / "texts" / name).write_bytes(f"{name} {''.join(LINES)}".encode())

    def make(data=tmp_path / "texts", tokenizer="bytes", part_bytes=800, cache="cache", **options) -> TextLM:
        monkeypatch.setattr(corpus, "PART_BYTES", part_bytes)
        defaults = {"seq_len": 16, "batch_size": 4, "packing_processes": 1, "cache_dir": str(tmp_path / cache)}
        return TextLM(str(data), str(tokenizer), **(defaults | options))

    return make


def shards(tmp_path, kind="bin") -> list:
    return sorted((tmp_path / "cache" / "tokens").glob(f"*/train-*.{kind}"))


@pytest.mark.parametrize("tokenizer", ["bytes", "tokenizers/gpt2_vocab.bpe", "stories260K/tok512.bin"])
def test_shards_hold_the_tokens_of_one_file(tokenizer, make, tmp_path, request):
    tokenizer = tokenizer if tokenizer == "bytes" else request.getfixturevalue("zoo_data") / tokenizer
    one, splits = make(tokenizer=tokenizer, part_bytes=1 << 20, cache="one"), ("train", "val", "predict")
    expected = {split: (one.tokens(split).tolist(), one.stats(split)) for split in splits}
    many = make(tokenizer=tokenizer)
    assert {split: (many.tokens(split).tolist(), many.stats(split)) for split in splits} == expected
    assert len(shards(tmp_path)) > 6
    # Some windows of an epoch cross the end of a shard.
    batches = [islice(data.train_dataloader(), 30) for data in (many, one)]
    assert all(a.equal(b) for pair in zip(*batches, strict=True) for a, b in zip(*pair, strict=True))


def test_packing_that_was_interrupted_keeps_its_shards(make, tmp_path, monkeypatch):
    expected = make(part_bytes=1 << 20, cache="one").tokens("train").tolist()
    write, calls = packing._write_tokens, []

    def fail_at_the_fourth(rows, tokenizer, file):
        calls.append(file)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return write(rows, tokenizer, file)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_write_tokens", fail_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            make().stats("train")
    complete = shards(tmp_path, "json")
    assert len(complete) == 3
    # One of the three is damaged meanwhile: it is packed again, and the two others are not.
    content = bytearray(shards(tmp_path)[1].read_bytes())
    content[7] ^= 1
    shards(tmp_path)[1].write_bytes(content)
    times = [file.stat().st_mtime_ns for file in complete]
    assert make().tokens("train").tolist() == expected
    assert [file.stat().st_mtime_ns == time for file, time in zip(complete, times, strict=True)] == [True, False, True]


def test_a_damaged_shard_is_packed_again_without_the_others(make, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packing, "CHECKED_AT_START", 0)
    monkeypatch.setattr(checksums, "CHUNK_BYTES", 100)
    expected = make().tokens("train").tolist()
    content = bytearray(shards(tmp_path)[2].read_bytes())
    content[-1] ^= 1
    shards(tmp_path)[2].write_bytes(content)
    times = [file.stat().st_mtime_ns for file in shards(tmp_path, "json")]
    with pytest.raises(UserError, match=r"train-\d+-\d+\.bin in the cache is damaged: start again"):
        [window.tokens for window in make().dataset("train")]
    assert make().tokens("train").tolist() == expected
    same = [file.stat().st_mtime_ns == time for file, time in zip(shards(tmp_path, "json"), times, strict=True)]
    assert same == [i != 2 for i in range(len(same))]
    shards(tmp_path)[3].unlink()
    assert make().tokens("train").tolist() == expected
    assert re.search(r"\(train-\d+-\d+\.bin is missing\): it is written again", capsys.readouterr().err)


def test_large_texts_are_not_read_at_the_start(make, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "HASHED_BYTES", 0)
    first = make().stats("train")
    with monkeypatch.context() as patch:
        patch.setattr(spans.TextFile, "rows", None)  # would fail if called
        patch.setattr(corpus, "check_utf8", None)
        assert make().stats("train") == first
    file = tmp_path / "texts" / "b.txt"
    file.write_bytes(b"\n" + file.read_bytes()[1:])  # the same size
    os.utime(file, ns=(0, 0))
    assert make().stats("predict")["words"] == make(cache="other").stats("predict")["words"]
    file.write_bytes(b"x" * 1000 + b"\xff" + b"y\n" * 100)
    with pytest.raises(UserError, match=r"b\.txt is not UTF-8 text: byte 0xff at offset 1000"):
        make().stats("predict")


@pytest.mark.slow
def test_two_processes_pack_the_same_tokens(make, tmp_path):
    one = make(part_bytes=1 << 20, cache="one").tokens("predict").tolist()
    assert make(packing_processes=2).tokens("predict").tolist() == one


@pytest.mark.parametrize("kind", ["one line", "documents"])
def test_few_long_rows_are_cut_into_splits(kind, make, tmp_path):
    rows = [f"{i} " + "日本 word " * 100 for i in range(8)]
    if kind == "one line":
        file = tmp_path / "line.txt"
        file.write_text("".join(rows), encoding="utf-8")
    else:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    splits = {split: make(file).tokens(split).tolist() for split in ("train", "val", "test")}
    size = len("".join(rows).encode())
    decode = make(file).tokenizer.decode
    assert "".join(decode(tokens) for tokens in splits.values()) == "".join(rows)  # no character is cut
    for split, share in {"train": 0.9, "val": 0.05, "test": 0.05}.items():
        assert abs(sum(token < 256 for token in splits[split]) - share * size) < 4
        assert splits[split][0] == 256  # each split starts as a document does


def test_validation_on_the_complete_text(make, tmp_path):
    data = make(val_fraction=1.0)
    assert data.tokens("val").tolist() == data.tokens("predict").tolist()
    assert sum(int((window.targets >= 0).sum()) for window in data.dataset("val")) == data.stats("val")["tokens"] - 1
    with pytest.raises(UserError, match=r"the train split of .* contains no text: lower --data.val_fraction"):
        make(val_fraction=1.0).dataset("train")


def test_formats_of_tables_and_byte_order_marks(make, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [f"row {i} é" for i in range(40)]
    array = json.dumps([{"text": row} for row in rows]).encode()
    files = {"array.json": array, "mark.json": b"\xef\xbb\xbf" + array}
    files["lines.jsonl"] = b"\xef\xbb\xbf" + "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()
    files["text.txt"] = b"\xef\xbb\xbf" + "".join(rows).encode()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "table.parquet")
    for name in [*files, "table.parquet"]:
        data = make(tmp_path / name)
        assert data.tokenizer.decode(data.tokens("predict")) == "".join(rows), name
