"""Every kind of tokenizer: recognition by content, lossless decoding, streaming, saving, messages for invalid files."""

import json
import struct
import subprocess
import sys

import pytest
import torch

from zoo.tokenizers import from_state, load_tokenizer, stream_decode, train_bpe
from zoo.tokenizers.llama2c import Llama2cTokenizer

TEXT = "Once upon a time, there was a naïve  café.\n\n\tShe said: «日本 😀» \r\n<s> </s> <|endoftext|>\n"
REAL = {
    "llama2c": "stories260K/tok512.bin",
    "sentencepiece": "tokenizers/llama2_tokenizer.model",
    "t5": "tokenizers/t5_spiece.model",
    "gpt2 by its vocabulary": "tokenizers/gpt2_encoder.json",
    "gpt2 by its merges": "tokenizers/gpt2_vocab.bpe",
}


def llama2c_file(pieces: list[tuple[bytes, float]]) -> bytes:
    """A llama2.c tokenizer: the fixed first 259 tokens, and then `pieces`."""
    head = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
    tokens = [(piece, 0.0) for piece in head] + pieces
    entries = (struct.pack("<fI", score, len(piece)) + piece for piece, score in tokens)
    return struct.pack("<I", max(len(piece) for piece, _ in tokens)) + b"".join(entries)


@pytest.fixture
def llama2c(tmp_path):
    scores = {b" ": -10, b"a": -10, b"b": -10, b"ab": -2, b"ba": -1, b" a": -3, b"aba": -4}
    (tmp_path / "tok.bin").write_bytes(llama2c_file(list(scores.items())))
    return load_tokenizer(tmp_path / "tok.bin")


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([TEXT * 3, "the cat sat on the mat, the cat sat on the hat\n" * 9], 300)


def assert_streams(tokenizer, ids: list[int]) -> None:
    assert "".join(stream_decode(tokenizer, ids)) == tokenizer.decode(ids)


def assert_random_ids_stream(tokenizer) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        assert_streams(tokenizer, torch.randint(tokenizer.vocab_size, (30,), generator=generator).tolist())


def test_byte_tokenizer():
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.encode("é") == [256, 0xC3, 0xA9]
    assert tokenizer.encode("é", bos=False, eos=True) == [0xC3, 0xA9, 256]
    assert tokenizer.decode([0xC3]) == "\ufffd"
    assert list(stream_decode(tokenizer, tokenizer.encode("aé"))) == ["a", "é"]
    assert_random_ids_stream(tokenizer)


@pytest.mark.parametrize("text", ["", " ", "\0", "\r\n", TEXT])
def test_bytes_and_bpe_are_lossless(text: str, bpe):
    for tokenizer in (load_tokenizer("bytes"), bpe):
        assert tokenizer.decode(tokenizer.encode(text, eos=True)) == text
        assert tokenizer.encode(text, bos=False) == tokenizer.encode(text)[1:]


def test_llama2c_merges_best_score_first_then_leftmost(llama2c):
    space, _, b, _, ba, space_a, _ = range(259, 259 + 7)  # in the order of the fixture's pieces
    assert llama2c.encode("") == [1]
    assert llama2c.encode("abab") == [1, space_a, ba, b]  # " " a [b a] b, then [" " a]
    assert llama2c.encode("bab", bos=False, eos=True) == [space, ba, b, 2]
    assert llama2c.encode("é") == [1, space, 3 + 0xC3, 3 + 0xA9]  # no such piece: its bytes
    assert llama2c.decode([1, space_a, ba, b]) == "abab"
    assert llama2c.decode([space_a, ba]) == " aba"  # the space is dropped only after BOS
    assert llama2c.decode(llama2c.encode("abc <0x41> é")) == "abc <0x41> é"


def test_llama2c_cuts_do_not_change_the_merges(llama2c):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        text = "".join("ab é"[i] for i in torch.randint(4, (40,), generator=generator))
        assert llama2c.encode(text, bos=False) == list(llama2c._merge(" " + text))


@pytest.mark.parametrize("name", REAL)
def test_real_vocabularies(name: str, zoo_data):
    tokenizer = load_tokenizer(zoo_data / REAL[name])
    ids = tokenizer.encode(TEXT, eos=True)
    assert (ids[0] == tokenizer.bos_id) == (tokenizer.bos_id is not None)
    assert ids[-1] == tokenizer.eos_id
    if name != "t5":  # which normalizes its text
        assert tokenizer.decode(ids) == TEXT
    assert from_state(tokenizer.state()).encode(TEXT, eos=True) == ids
    assert_streams(tokenizer, ids)
    assert_random_ids_stream(tokenizer)


@pytest.mark.parametrize("name", ["bytes", *REAL])
def test_encoding_line_by_line_equals_the_complete_document(name: str, zoo_data):
    tokenizer = load_tokenizer("bytes" if name == "bytes" else zoo_data / REAL[name])
    text = (zoo_data / "wikitext-2" / "valid.txt").read_text(encoding="utf-8")[:20_000]
    first, *later = text.splitlines(keepends=True)
    parts = tokenizer.encode_batch([first]) + tokenizer.encode_batch(later, continued=True)
    assert [token for part in parts for token in part] == tokenizer.encode(text, bos=False)


@pytest.mark.parametrize("name", ["bpe", "gpt2 by its merges"])
def test_continued_encoding_keeps_indents(name: str, request):
    tokenizer = train_bpe(["if x:\n        y\n" * 99], 300)
    if name != "bpe":
        tokenizer = load_tokenizer(request.getfixturevalue("zoo_data") / REAL[name])
    lines = ["        y\n", "y\n", "\n", "\n\n  y", "\ty", ""]
    assert tokenizer.encode("\n" + lines[0], bos=False) != tokenizer.encode_batch(["\n", lines[0]])
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(lines, continued=True)] == lines


def test_llama2c_equals_sentencepiece_with_llama2_vocabulary(zoo_data):
    """llama2.c's file is exported from a SentencePiece model, so both must encode alike."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(zoo_data / "tokenizers" / "llama2_tokenizer.model"))
    spellings = [(model.id_to_piece(i).replace("▁", " "), model.get_score(i)) for i in range(259, 32000)]
    tokenizer = Llama2cTokenizer(llama2c_file([(piece.encode(), score) for piece, score in spellings]))
    reference = load_tokenizer(zoo_data / "tokenizers" / "llama2_tokenizer.model")
    for file in ("tinyshakespeare/input.txt", "wikitext-2/valid.txt"):
        text = (zoo_data / file).read_text(encoding="utf-8")[:50_000]
        assert tokenizer.encode(text) == reference.encode(text)


def test_gpt2_equals_transformers(zoo_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    for source, name in (("gpt2_encoder.json", "vocab.json"), ("gpt2_vocab.bpe", "merges.txt")):
        (tmp_path / name).write_bytes((zoo_data / "tokenizers" / source).read_bytes())
    peer = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    plain = TEXT.replace("<|endoftext|>", "")  # the zoo encodes a special token's name as plain text
    assert tokenizer.encode(plain, bos=False) == peer.encode(plain)
    assert tokenizer.bos_id == peer.bos_token_id == 50256
    peer.save_pretrained(tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved")  # tokenizer.json and its configuration
    assert saved.encode(TEXT) == tokenizer.encode(TEXT, bos=False)  # as peer, without BOS
    assert saved.bos_id == saved.eos_id == 50256


def test_hugging_face_folder_configures_bos_and_eos(bpe, tmp_path):
    (tmp_path / "tokenizer.json").write_text(bpe.state()["model"])
    assert load_tokenizer(tmp_path).bos_id == load_tokenizer(tmp_path / "tokenizer.json").eos_id == 0
    config = {"bos_token": None, "eos_token": {"content": "the"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.bos_id is None
    assert tokenizer.eos_id == bpe.encode("the", bos=False)[0]
    assert bpe.decode(tokenizer.encode("the")) == "the"
    assert tokenizer.eos_id not in tokenizer.encode("the")  # no text is encoded as the token that ends it


def test_hugging_face_folder_with_only_a_sentencepiece_model(zoo_data, tmp_path):
    source = zoo_data / "tokenizers" / "llama2_tokenizer.model"
    (tmp_path / "tokenizer.model").write_bytes(source.read_bytes())
    assert load_tokenizer(tmp_path).fingerprint == load_tokenizer(source).fingerprint


def test_tokenizer_is_loaded_from_a_checkpoint(bpe, llama2c, tmp_path):
    for tokenizer in (bpe, llama2c, load_tokenizer("bytes")):
        torch.save({"state_dict": {}, "tokenizer": tokenizer.state()}, tmp_path / "last.ckpt")
        loaded = load_tokenizer(tmp_path / "last.ckpt")
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
        assert all(isinstance(value, str | int | None) for value in tokenizer.state().values())


def test_bpe_training_is_deterministic_across_processes(bpe):
    script = (
        "import sys, json; from zoo.tokenizers import train_bpe;"
        "print(train_bpe(json.loads(sys.stdin.read()), 300).fingerprint)"
    )
    texts = json.dumps([TEXT * 3, "the cat sat on the mat, the cat sat on the hat\n" * 9])
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, input=texts, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == bpe.fingerprint
    assert bpe.vocab_size == 300
    assert bpe.bos_id == bpe.eos_id == 0
    assert len(bpe.encode("the cat", bos=False)) < 4
    assert_random_ids_stream(bpe)


def test_import_loads_neither_torch_nor_tokenizer_libraries():
    script = "import sys, zoo.tokenizers; print({'torch', 'tokenizers', 'sentencepiece'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer is at .*nowhere\.model"):
        load_tokenizer(tmp_path / "nowhere.model")


def test_unknown_name_is_looked_up_on_the_hub(monkeypatch, tmp_path):
    """With a simulated hub, whose only model has the tokenizer.json of a BPE trained here."""

    def download(name, file, local_files_only):
        if (name, file, local_files_only) != ("gpt2", "tokenizer.json", True):
            raise OSError("404")
        return tmp_path / "tokenizer.json"

    bpe = train_bpe(["the cat sat on the mat"] * 9, 270)
    (tmp_path / "tokenizer.json").write_text(bpe.state()["model"])
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("zoo.tokenizers.load.online", lambda: False)
    assert load_tokenizer("gpt2").encode("the cat") == bpe.encode("the cat")
    with pytest.raises(FileNotFoundError, match="no tokenizer is at gpt3, and the hub cannot be reached"):
        load_tokenizer("gpt3")


WRONG = {
    "empty.model": (b"", "the file is empty"),
    "noise.model": (bytes(range(256)) * 9, "not a tokenizer of a known kind"),
    "text.txt": (b"Once upon a time\n", "not a tokenizer of a known kind"),
    "broken.json": (b'{"model": ', "not a tokenizer of a known kind"),
    "other.json": (b'{"a": 1}', "name them encoder.json"),
    "vocab.json": (b'{"a": 1}', "it needs merges.txt, which is not in the same folder"),
    "tokenizer.json": (b'{"model": {"type": "none"}}', "tokenizer.json cannot be read"),
    "cut.ckpt": (b"PK\3\4 and no more", "truncated"),
    "cut.bin": (llama2c_file([(b" ", 0.0)])[:-1], "truncated"),
}


@pytest.mark.parametrize("name", WRONG)
def test_invalid_files_are_named_in_one_sentence(name: str, tmp_path):
    content, reason = WRONG[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        load_tokenizer(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_invalid_checkpoints_folders_and_ids_are_named(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    with pytest.raises(ValueError, match="checkpoint without a tokenizer"):
        load_tokenizer(tmp_path / "bare.ckpt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"contains none of tokenizer\.json"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(ValueError, match="outside the tokenizer's vocabulary of 257"):
        load_tokenizer("bytes").decode([257])
    with pytest.raises(ValueError, match="at least 257"):
        train_bpe(["text"], 256)
    with pytest.raises(ValueError, match="unknown kind 'new'"):
        from_state({"kind": "new"})


def test_checkpoint_with_pickled_code_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    torch.save({"tokenizer": Harm()}, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="pickled Python objects"):
        load_tokenizer(tmp_path / "bad.ckpt")
