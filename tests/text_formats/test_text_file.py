"""Text files: what is read, and the sentence for what is not."""

import os

import pytest

from zoo.errors import UserError
from zoo.text_formats.text_file import read_text


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"\xef\xbb\xbfa\r\nb\rc\n", "a\nb\nc\n"), ("é".encode(), "é"), (b"a\0b", "a\0b")],
)
def test_utf8_text_is_read(content, text, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    assert read_text(tmp_path / "a.txt") == text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"ab\xff\xfe", r"a\.txt is not UTF-8 text: byte 0xff at offset 2 is invalid; convert the file"),
        ("abc".encode("utf-16"), r"offset 0 is invalid \(it looks like UTF-16\); convert"),
        (b"\x1f\x8b\x08\0", r"offset 1 is invalid \(it is compressed with gzip\)"),
        (b"abc", "too large: 3 bytes, where at most 2 are read"),
        (b"", "is empty"),
    ],
)
def test_what_is_refused(content, reason, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        read_text(tmp_path / "a.txt", max_bytes=2 if content == b"abc" else None)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), ("/dev/zero", "a device"), (tmp_path, "a folder")):
        with pytest.raises(UserError, match=f"is {kind}: give a regular file"):
            read_text(path)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_text(tmp_path / "none")
