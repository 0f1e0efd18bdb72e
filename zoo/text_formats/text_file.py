"""Text files: regular files in UTF-8, with or without a byte order mark."""

import codecs
import os

from zoo.errors import UserError
from zoo.files import regular_file

_HINTS = {
    codecs.BOM_UTF16_LE: "it looks like UTF-16",
    codecs.BOM_UTF16_BE: "it looks like UTF-16",
    b"\x1f\x8b": "it is compressed with gzip",
    b"PK\x03\x04": "it is a zip archive",
}


def read_text(path: str | os.PathLike, max_bytes: int | None = None) -> str:
    """The content of a text file; all line ends become \\n.

    Args:
        path: the file.
        max_bytes: the largest size that is accepted; None accepts any.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it is not a regular file, it is empty or too large, or it is not UTF-8; the message names the byte.
    """
    content = regular_file(path, max_bytes=max_bytes).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {describe_byte(error)}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def describe_byte(error: UnicodeDecodeError, offset: int = 0, start: bytes | None = None) -> str:
    """The first byte that is not UTF-8, what the file probably is, and the remedy.

    Args:
        error: the exception of the decoder.
        offset: position in the file of the decoded bytes.
        start: first bytes of the file. Default: those of the decoded bytes.
    """
    start = error.object[:4] if start is None else start
    hints = [hint for signature, hint in _HINTS.items() if start.startswith(signature)]
    hint = f" ({hints[0]})" if hints else ""
    return f"byte 0x{error.object[error.start]:02x} at offset {offset + error.start} is invalid{hint}; convert the file"
