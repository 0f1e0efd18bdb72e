"""Texts at a URL: small ones are copied, large ones are packed in place; what cannot be read is refused."""

import functools
import http.server
import os
import pickle
import threading

import fsspec
import pytest

from zoo.datamodules import TextLM, TextRegression
from zoo.datamodules.sources import corpus, spans
from zoo.datamodules.sources.remote import copied_file
from zoo.errors import UserError
from zoo.files import remote_files
from zoo.files.remote_files import RemoteFile

TEXT = "".join(f"{i} naïve cats\r\n" if i % 3 else f"    {i} 日本\n" for i in range(200)).encode()
NAMES = ("a.txt", "b.txt", "c.txt")


@pytest.fixture
def store(tmp_path):
    """The URL of a folder in memory, with the files of the local folder `texts`."""
    files = fsspec.filesystem("memory")
    (tmp_path / "texts").mkdir()
    for name in NAMES:
        content = name.encode() + TEXT
        (tmp_path / "texts" / name).write_bytes(content)
        files.pipe(f"/bucket/texts/{name}", content)
    files.pipe("/bucket/texts/picture.png", b"no text")
    yield "memory://bucket/texts"
    files.rm("/bucket", recursive=True)


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(corpus, "PART_BYTES", 800)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "copies"))

    def make(data, cache="cache", **options) -> TextLM:
        return TextLM(str(data), seq_len=16, packing_processes=1, cache_dir=str(tmp_path / cache), **options)

    return make


def all_tokens(data):
    return {split: data.tokens(split).tolist() for split in ("train", "val", "test", "predict")}


def test_a_large_text_is_packed_in_place(store, make, tmp_path, monkeypatch):
    expected = all_tokens(make(tmp_path / "texts", "local"))
    monkeypatch.setattr(corpus, "HASHED_BYTES", 0)
    monkeypatch.setattr(remote_files, "READ_AT_ONCE", 100)
    remote = make(store)
    assert all_tokens(remote) == expected
    assert not (tmp_path / "copies").exists()
    # A second start reads no text, and one after a change reads all of it.
    with monkeypatch.context() as patch:
        patch.setattr(spans.TextFile, "rows", None)  # would fail if called
        assert make(store).stats("train") == remote.stats("train")
    fsspec.filesystem("memory").pipe("/bucket/texts/b.txt", b"B.txt" + TEXT)
    assert all_tokens(make(store)) != expected


def test_a_small_text_is_copied_and_equals_a_local_one(store, make, tmp_path):
    remote, local = make(store), make(tmp_path / "texts")
    assert remote._corpus.digest == local._corpus.digest
    assert all_tokens(remote) == all_tokens(local)
    one = make(f"{store}/b.txt")
    assert one.tokenizer.decode(one.tokens("predict")).encode() == b"b.txt" + TEXT


def test_tables_are_copied(make, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "HASHED_BYTES", 0)
    files = fsspec.filesystem("memory")
    files.pipe("/tables/rows.csv", b"text,y\n" + b"".join(b"row %d,%d\n" % (i, i) for i in range(30)))
    data = make("memory://tables/rows.csv")
    assert data.tokenizer.decode(data.tokens("predict")) == "".join(f"row {i}" for i in range(30))
    rows = TextRegression("memory://tables/rows.csv", target_columns="y", text_column="text")
    assert sum(len(rows.texts(split)) for split in ("train", "val", "test")) == 30
    assert corpus.data_label("memory://tables/rows.csv") == "rows"
    assert corpus.data_label("memory://tables/") == "tables"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"text,y\na,1\nb\n", "^memory://bad/rows.csv, line 3: "),
        ("rows.csv", b"", "^memory://bad/rows.csv is empty"),
        ("rows.csv", b"text,y\na,none\n", "^memory://bad/rows.csv, line 2: "),
        ("rows.csv", b"a,b\n1,2\n", "memory://bad/rows.csv has no column|no column.* memory://bad/rows.csv"),
        ("rows.csv", b"text,y\n\xff,1\n", "^memory://bad/rows.csv, line 2: "),
        ("rows.jsonl", b"{\n", "^memory://bad/rows.jsonl, line 1: "),
        ("rows.yaml", b"{", "^memory://bad/rows.yaml: it is not valid YAML"),
        ("rows.parquet", b"PAR1", "^memory://bad/rows.parquet "),
        ("rows.doc", b"x", "^memory://bad/rows.doc is not a table"),
    ],
)
def test_an_error_in_a_table_has_its_url(name, content, message, make, tmp_path):
    fsspec.filesystem("memory").pipe(f"/bad/{name}", content)
    with pytest.raises(UserError, match=message) as error:
        TextRegression(f"memory://bad/{name}", target_columns="y", text_column="text").reader.rows("train")
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize(("name", "content"), [("a.csv", b"a,b\n1,2\n"), ("a.jsonl", b"{\n"), ("a.txt", b"a\xff")])
def test_an_error_in_a_copied_text_has_its_url(name, content, make, tmp_path):
    fsspec.filesystem("memory").pipe(f"/bad-texts/{name}", content)
    with pytest.raises(UserError, match=rf"^memory://bad-texts/{name} ") as error:
        make(f"memory://bad-texts/{name}").stats("train")
    assert str(tmp_path) not in str(error.value)


def test_a_copied_file_can_be_sent_to_another_process(make):
    fsspec.filesystem("memory").pipe("/sent/a.txt", b"text")
    copy = pickle.loads(pickle.dumps(copied_file("memory://sent/a.txt")))
    assert copy.read_bytes() == b"text"
    assert f"{copy}" == "memory://sent/a.txt"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("memory://bucket/none", "there is no such file"),
        ("memory://bucket/images", "^the data memory://bucket/images holds no text: no file has one of the suffixes"),
        ("foo://bucket/texts", "Protocol not known: foo"),
    ],
)
def test_refusals(data, sentence, store, make):
    fsspec.filesystem("memory").pipe("/bucket/images/a.png", b"image")
    with pytest.raises((UserError, OSError), match=sentence):
        make(data).stats("train")


def test_the_cache_must_be_a_folder(store, make, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"--data\.cache_dir memory://bucket/cache is a URL: set it to a folder"):
        TextLM(store, cache_dir="memory://bucket/cache").stats("train")
    monkeypatch.setenv("ZOO_CACHE", "memory://bucket/cache")
    with pytest.raises(UserError, match="ZOO_CACHE memory://bucket/cache is a URL"):
        TextLM(store).stats("train")


@pytest.fixture
def server(tmp_path):
    """The URL of a folder on a web server that always sends complete files."""
    (tmp_path / "web").mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()
        thread.join()


def test_a_web_server_that_sends_complete_files(server, make, tmp_path, monkeypatch):
    (tmp_path / "web" / "a.txt").write_bytes(TEXT)
    data = make(server)
    assert data.tokenizer.decode(data.tokens("predict")).encode() == TEXT
    monkeypatch.setattr(corpus, "HASHED_BYTES", 0)
    with pytest.raises(
        UserError, match=r"^http\S*a\.txt cannot be read from byte [0-9]+ on .*: start again, or copy it here"
    ):
        make(server, "other").stats("train")


def test_a_remote_file_is_read_from_any_byte_on(store):
    content = b"b.txt" + TEXT
    with RemoteFile(f"{store}/b.txt", len(content), "1").open(buffering=64) as stream:
        assert stream.read(10) == content[:10]
        assert stream.seek(500) == 500
        assert stream.readline() == content[500:].splitlines(keepends=True)[0]
        assert stream.seek(-3, os.SEEK_END) == len(content) - 3
        assert stream.read() == content[-3:]
        assert stream.read(1) == b""
    with (
        pytest.raises(UserError, match="has changed while it was read"),
        RemoteFile(f"{store}/b.txt", len(content) + 5, "1").open() as stream,
    ):
        stream.read()


def test_a_text_is_requested_in_large_parts(monkeypatch):
    requests = []
    original = remote_files._Reader.readinto

    def readinto(self, buffer):
        requests.append(len(buffer))
        return original(self, buffer)

    monkeypatch.setattr(remote_files._Reader, "readinto", readinto)
    content = b"a line of text\n" * 100_000
    fsspec.filesystem("memory").pipe("/bucket/large.txt", content)
    text = spans.TextFile(RemoteFile("memory://bucket/large.txt", len(content), ""))
    assert "".join(line for _, line in text.rows(0, text.size)).encode() == content
    fsspec.filesystem("memory").rm("/bucket", recursive=True)
    assert len(requests) <= 3, requests  # its first bytes, all others, and the end
