"""Texts that can be read from any byte on, and their division into splits and into parts that are packed in parallel.

A source is a file, a table or a list of documents, whose rows form one sequence of bytes in UTF-8. Positions of splits
and parts are numbers of bytes. They are moved forward to the start of a row, so that reading a split never needs the
text before it.
"""

import codecs
import io
import itertools
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from zoo.errors import UserError
from zoo.files.remote_files import RemoteFile
from zoo.text_formats.text_file import describe_byte

Row = tuple[bool, str]  # whether the row starts a document, and its text
Place = Literal["row", "chunk", "character"]

LONGEST_LINE = 1 << 20  # characters; a longer line is read in several rows, and can be cut anywhere
BLOCK_ROWS = 1000  # rows of a table per read


class Source(Protocol):
    """Rows of text, with a position in bytes."""

    @property
    def size(self) -> int:
        """Bytes of UTF-8 in all rows."""

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """The rows between two positions; a row that a position cuts is read in part."""

    def align(self, position: int, place: Place) -> int:
        """The first position from `position` on that is a good place to cut.

        Args:
            position: from 0 to `size`.
            place: "row", where a row starts; "chunk", where moreover no tokenizer merges characters across the cut, if
                such a place is near; "character", between any two characters.
        """


@dataclass(frozen=True)
class TextFile:
    """A text file: one document, whose rows are its lines. A byte order mark is left out."""

    file: Path | RemoteFile

    @cached_property
    def _start(self) -> int:
        with self.file.open("rb", buffering=16) as content:
            return len(codecs.BOM_UTF8) if content.read(3) == codecs.BOM_UTF8 else 0

    @cached_property
    def size(self) -> int:
        size = self.file.size if isinstance(self.file, RemoteFile) else self.file.stat().st_size
        return size - self._start

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        at = start
        try:
            with self.file.open("rb") as content:
                content.seek(self._start + start)
                text = io.TextIOWrapper(content, encoding="utf-8", newline="\n")  # keeps \r
                while at < stop and (line := text.readline(LONGEST_LINE)):
                    line, used = _shortened(line, stop - at)
                    yield at == 0, line
                    at += used
        except UnicodeDecodeError:
            check_utf8(self.file)
            raise

    def align(self, position: int, place: Place) -> int:
        if not 0 < position < self.size:
            return position
        with self.file.open("rb", buffering=1 << 16) as content:
            if place != "character":
                # The rest of the previous line; in the place of a line that is very long, any character.
                content.seek(self._start + position - 1)
                rest = content.readline(LONGEST_LINE)
                if rest.endswith(b"\n") or len(rest) < LONGEST_LINE:
                    at = position - 1 + len(rest)
                    return at if place == "row" else self._chunk_start(content, at)
            content.seek(self._start + position)
            return position + _continuation_bytes(content.read(4))

    def _chunk_start(self, content: Any, at: int) -> int:
        """The first line after a line with text that is not indented itself; `at` where none is near."""
        stop, start, previous = at + LONGEST_LINE, at, ""
        while at < min(stop, self.size):
            line = content.readline(LONGEST_LINE)
            text = line.decode("utf-8", "ignore")
            if previous.strip() and not text[:2].isspace():
                return at
            at, previous = at + len(line), text
        return start if at < self.size else self.size


@dataclass(frozen=True)
class Documents:
    """Documents in memory; each is a row."""

    texts: Sequence[str]

    @property
    def size(self) -> int:
        return self._starts[-1]

    @cached_property
    def _starts(self) -> list[int]:
        """Position of each block, and the size of all."""
        return [0, *itertools.accumulate(self._block_size(i) for i in range(0, self._n_rows, BLOCK_ROWS))]

    @property
    def _n_rows(self) -> int:
        return len(self.texts)

    def _block_size(self, first: int) -> int:
        return sum(len(text.encode()) for text in self._block(first))

    def _block(self, first: int) -> Sequence[str]:
        """The texts of the rows from `first` on."""
        return self.texts[first : first + BLOCK_ROWS]

    def _starts_document(self, row: int) -> bool:
        return True

    def _rows_from(self, position: int) -> Iterator[tuple[int, int, str]]:
        """Position, number and text of the rows from the one that contains `position` on."""
        block = max(bisect_right(self._starts, position) - 1, 0)
        at = self._starts[block]
        for first in range(block * BLOCK_ROWS, self._n_rows, BLOCK_ROWS):
            for row, text in enumerate(self._block(first), first):
                size = len(text.encode())
                if at + size > position:
                    yield at, row, text
                at += size

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        for at, row, text in self._rows_from(start):
            if at >= stop:
                return
            if at < start:
                text = text.encode()[start - at :].decode()
            yield at >= start and self._starts_document(row), _shortened(text, stop - max(at, start))[0]

    def align(self, position: int, place: Place) -> int:
        if not 0 < position < self.size:
            return position
        start, previous = None, ""
        for at, row, text in self._rows_from(position):
            if place == "character":
                return position + _continuation_bytes(text.encode()[position - at :][:4])
            if at >= position:
                start = at if start is None else start
                is_safe = self._starts_document(row) or (previous.strip() and not text[:2].isspace())
                if place == "row" or is_safe:
                    return at
                if at - position > LONGEST_LINE:
                    return start
            previous = text
        return self.size


@dataclass(frozen=True)
class Table(Documents):
    """The texts of a table of `datasets`.

    Args:
        texts: the table.
        column: name of the column of texts; a dotted one for a key of nested mappings, such as "article.text".
        join_rows: the rows are lines of one document; otherwise each is a document.
        name: what messages call the table.

    Raises:
        UserError: the column does not exist.
    """

    texts: Any
    column: str
    join_rows: bool
    name: str

    def __post_init__(self) -> None:
        # Keys of nested mappings are columns whose names have dots.
        texts = self.texts if self.column in self.texts.column_names else self.texts.flatten()
        if self.column not in texts.column_names:
            columns = ", ".join(texts.column_names)
            raise UserError(f"{self.name} has no column {self.column!r}: set --data.text_column to one of {columns}")
        object.__setattr__(self, "texts", texts.select_columns([self.column]))

    def _block(self, first: int) -> Sequence[str]:
        values = self.texts[first : first + BLOCK_ROWS][self.column]
        texts = ["" if value is None else str(value) for value in values]
        # A line of a joined document ends with a line end.
        return [text if text.endswith("\n") else text + "\n" for text in texts] if self.join_rows else texts

    def _block_size(self, first: int) -> int:
        import pyarrow
        import pyarrow.compute as pc

        # Of texts the sizes are known without reading them.
        column = self.texts.with_format("arrow")[first : first + BLOCK_ROWS][self.column]
        is_text = pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)
        if self.join_rows or not is_text:
            return super()._block_size(first)
        return pc.sum(pc.binary_length(column)).as_py() or 0

    def _starts_document(self, row: int) -> bool:
        return row == 0 or not self.join_rows


def _shortened(text: str, size: int) -> tuple[str, int]:
    """A text cut after at most `size` bytes, and the bytes that it then has."""
    length = len(text) if text.isascii() else len(text.encode())
    return (text, length) if length <= size else (text.encode()[:size].decode(), size)


def _continuation_bytes(content: bytes) -> int:
    """How many bytes at the start belong to the character before."""
    return next((i for i, byte in enumerate(content) if byte & 0xC0 != 0x80), len(content))


def check_utf8(file: Path | RemoteFile, update: Any = lambda block: None) -> None:
    """Read a file, and pass each block to `update`.

    Raises:
        UserError: the file is not UTF-8; the message names it and the offset of the wrong byte.
    """
    # Read in blocks; the decoder keeps the first bytes of a character that the block's end cuts.
    decoder, at, start = codecs.getincrementaldecoder("utf-8")(), 0, b""
    with file.open("rb") as content:
        while True:
            block = content.read(1 << 20)
            # Bytes carried over from the previous block, which the error's offset counts.
            pending, start = len(decoder.getstate()[0]), start or block[:4]
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                reason = describe_byte(error, at - pending, start)
                raise UserError(f"{file} is not UTF-8 text: {reason}") from error
            if not block:
                return
            update(block)
            at += len(block)


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a split.

    Args:
        spans: sources, with the positions between which they are read.
        start: position of the first row in all sources together.
        is_first: the part starts the split, whose first row counts as the start of a document.
    """

    spans: tuple[tuple[Source, int, int], ...]
    start: int
    is_first: bool

    @property
    def size(self) -> int:
        """Bytes of UTF-8."""
        return sum(stop - start for _, start, stop in self.spans)

    def rows(self) -> Iterator[Row]:
        is_first = self.is_first
        for source, start, stop in self.spans:
            for starts_document, text in source.rows(start, stop):
                if text:  # empty rows of tables are left out
                    yield starts_document or is_first, text
                    is_first = False


def divide(sources: Sequence[Source], shares: Sequence[float], number: int, part_bytes: int) -> list[Part]:
    """The parts of one split.

    A row belongs to the split in which it starts. If a split would be empty, the text is cut within rows instead.

    Args:
        sources: the complete text.
        shares: the positions at which the splits start, and 1.0, as shares of the text's bytes, in ascending order.
        number: number of the split.
        part_bytes: size of a part; each ends at the next place after it that tokenizers respect.
    """
    offsets = [0, *itertools.accumulate(source.size for source in sources)]
    total = offsets[-1]
    for place in ("row", "character"):
        bounds = [_align(sources, offsets, int(np.ceil(share * total)), place) for share in shares]
        if all(start < stop for start, stop in itertools.pairwise(bounds)):
            break
    first, last = bounds[number], bounds[number + 1]
    parts, spans, size, part_start = list[Part](), list[tuple[Source, int, int]](), 0, first
    for source, offset in zip(sources, offsets, strict=False):
        start, stop = max(first - offset, 0), min(last - offset, source.size)
        while start < stop:
            # End the part in this source, if it becomes large enough.
            room = part_bytes - size
            end = stop if stop - start <= room else min(source.align(start + room, "chunk"), stop)
            spans.append((source, start, end))
            size += end - start
            start = end
            if size >= part_bytes:
                parts.append(Part(tuple(spans), part_start, not parts))
                spans, size, part_start = [], 0, offset + end
    if spans or not parts:
        parts.append(Part(tuple(spans), part_start, not parts))
    return parts


def _align(sources: Sequence[Source], offsets: Sequence[int], position: int, place: Place) -> int:
    """`Source.align` for a position in all sources together."""
    if position >= offsets[-1]:
        return offsets[-1]
    i = bisect_right(offsets, position) - 1
    return offsets[i] + sources[i].align(position - offsets[i], place)
