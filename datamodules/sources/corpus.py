"""Sources of text: rows of text for each split, from CPython's documentation, local files or the Hugging Face hub.

A row is (starts_document, text). Tables and hub data sets are read with `datasets`. Plain text files are read here,
because `datasets` opens them with universal newlines, which changes \\r\\n and \\r to \\n; read here, they are
reproduced exactly by a byte tokenizer.
"""

import codecs
import difflib
import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.files import regular_file
from zoo.hub.connection import online
from zoo.text_formats.text_file import describe_byte

Row = tuple[bool, str]
Rows = Callable[[], Iterable[Row]]

SPLIT_NAMES = {
    "train": {"train", "training"},
    "val": {"val", "valid", "validation", "dev"},
    "test": {"test"},
}
_TABLES = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
TEXT_SUFFIXES = {".txt", ".text", ".md", ".rst", ".raw", ".tokens"}
_LONGEST_LINE = 1 << 20  # characters; a longer line is read in several rows


@dataclass
class Corpus:
    """The rows of each split, and a digest of their contents.

    The splits are "train", "val" and often "test"; if the text was given without splits, also "predict", all of it.
    """

    digest: str
    splits: dict[str, Rows]


def open_corpus(
    data: str,
    *,
    text_column: str = "text",
    join_rows: bool = False,
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
    cache_dir: Path,
) -> Corpus:
    """Open a text.

    Args:
        data: "pydoc", a file, a folder, or a hub data set as "name" or "name:config".
        text_column: name of the column of a table that contains the text.
        join_rows: treat the rows of a table as lines of one document instead of documents.
        val_fraction: share of the text used for validation if no such split is given.
        test_fraction: share of the text used for testing if no splits are given.
        cache_dir: folder for the files of `datasets`.

    Raises:
        FileNotFoundError: neither a file nor a data set on the hub has this name.
        UserError: a file is not text, or a table lacks the column `text_column`.
    """
    # Find the rows of each given split, and a digest that changes with their content.
    path = Path(os.path.expanduser(data))
    if data == "pydoc":
        digest, given = _pydoc()
    elif path.exists():
        files = split_files(path, TEXT_SUFFIXES | _TABLES.keys())
        digest = _digest(file for group in files.values() for file in group)
        tables = cache_dir / digest[:32]  # because `datasets` recognises files by their time, not by their content
        given = {s: _file_rows(group, text_column, join_rows, tables) for s, group in files.items()}
    else:
        digest, given = _hub(data, text_column, join_rows, cache_dir)
    # Cut the missing splits; the digest includes the settings that change the rows.
    given = _complete(given, val_fraction, test_fraction)
    settings = repr((sorted(given), text_column, join_rows, val_fraction, test_fraction))
    return Corpus(hashlib.blake2b((digest + settings).encode(), digest_size=16).hexdigest(), given)


def _pydoc() -> tuple[str, dict[str, Rows]]:
    """CPython's documentation, as `help()` shows it: one document per topic, in the order of their names' hashes."""
    from pydoc_data.topics import topics

    def order(name: str) -> bytes:
        return hashlib.blake2b(name.encode()).digest()

    # Hash order mixes the topics, so that the splits are alike.
    documents = [topics[name] for name in sorted(topics, key=order)]
    digest = hashlib.blake2b("\0".join(documents).encode()).hexdigest()
    return digest, {"train": lambda: ((True, text) for text in documents)}


def data_label(data: str) -> str:
    """A short name of the data for file names: that of its folder, of its file or of the hub data set."""
    path = Path(os.path.abspath(Path(os.path.expanduser(data))))
    if path.exists():
        return path.name if path.is_dir() else path.stem
    return re.sub(r"[^\w.-]+", "-", data.rpartition("/")[2])


def is_local(path: Path) -> bool:
    """Whether `path` is a file, a folder, or a prefix of file names: `sst` for sst-train.txt."""
    return path.exists() or bool(_files_with_prefix(path))


def _files_with_prefix(path: Path) -> list[Path]:
    """The files in the same folder whose names continue that of `path` with -, _ or a dot."""
    if not path.name or "\0" in path.name or not path.parent.is_dir():
        return []
    return sorted(file for file in path.parent.glob(f"{glob.escape(path.name)}[-_.]*") if file.is_file())


def split_files(path: Path, suffixes: Set[str]) -> dict[str, list[Path]]:
    """The files of each split, recognised by their names if one of them is named for training.

    Args:
        path: a file, a folder, or a prefix of file names.
        suffixes: suffixes of the files to use, in lower case; others are ignored.

    Raises:
        UserError: there are no such files.
    """
    if path.is_file():
        return {"train": [path]}
    if path.exists() and not path.is_dir():
        regular_file(path, "--data.data")  # refuses a pipe or a device
    # Use the files with known suffixes, and sort them into splits by their names.
    files = sorted(path.iterdir()) if path.is_dir() else _files_with_prefix(path)
    files = [file for file in files if file.suffix.lower() in suffixes and not file.is_dir()]
    if not files:
        kinds = ", ".join(sorted(suffixes))
        raise UserError(f"the folder {path} holds no text: none of its files has one of the suffixes {kinds}")
    splits: dict[str, list[Path]] = {}
    for file in files:
        if not file.is_file():
            regular_file(file)  # refuses it
        if named := split_named(file.name):
            splits.setdefault(named, []).append(file)
    return splits if "train" in splits else {"train": files}


def split_named(name: str) -> str | None:
    """The split that is part of a file's name, if any: "val" for reviews-dev.csv."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, names in SPLIT_NAMES.items() if words & names), None)


def _digest(files: Iterable[Path]) -> str:
    """A digest of the files' contents, which must be UTF-8.

    Raises:
        UserError: a file is not UTF-8; the message names it and the offset of the wrong byte.
    """
    digest = hashlib.blake2b()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
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
                    break
                digest.update(block)
                at += len(block)
    return digest.hexdigest()


def _file_rows(files: list[Path], text_column: str, join_rows: bool, cache_dir: Path) -> Rows:
    def rows() -> Iterator[Row]:
        for file in files:
            if builder := _TABLES.get(file.suffix.lower()):
                table = _open_table(builder, file, cache_dir)
                yield from _table_rows(table, text_column, join_rows, str(file))
            else:
                yield from _lines(file)

    return rows


def _lines(file: Path) -> Iterator[Row]:
    """The lines of a text file, which is one document."""
    with file.open(encoding="utf-8", newline="\n") as text:  # lines end at \n only, and \r is kept
        starts_document = True
        while line := text.readline(_LONGEST_LINE):
            yield starts_document, line
            starts_document = False


def _open_table(builder: str, file: Path, cache_dir: Path) -> Any:
    """A CSV, TSV or JSON-lines file as a `datasets` table."""
    from datasets import load_dataset

    options: dict[str, Any] = {}
    if builder == "csv":
        options["keep_default_na"] = False  # the text "NA" is not a missing value
        options["sep"] = "\t" if file.suffix.lower() == ".tsv" else ","
    try:
        return load_dataset(builder, data_files=str(file), split="train", cache_dir=str(cache_dir), **options)
    except Exception as error:  # `datasets` raises errors of many types
        reason = first_line(error.__cause__ or error)
        raise UserError(f"{file} cannot be read as a table ({reason}): fix the file") from error


def _table_rows(table: Any, column: str, join_rows: bool, name: str) -> Iterator[Row]:
    """The texts of a table's rows: documents, or with `join_rows` the lines of one document."""
    if column not in table.column_names:
        columns = ", ".join(table.column_names)
        raise UserError(f"{name} has no column {column!r}: set --data.text_column to one of {columns}")
    is_first = True
    for row in table.select_columns([column]):
        # A line of a joined document ends with a line end; empty rows are left out.
        text = "" if row[column] is None else str(row[column])
        if join_rows and not text.endswith("\n"):
            text += "\n"
        if text:
            yield is_first or not join_rows, text
            is_first = False


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if that is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def _hub(data: str, text_column: str, join_rows: bool, cache_dir: Path) -> tuple[str, dict[str, Rows]]:
    """Digest and rows of a hub data set."""
    tables = hub_tables(data, TEXT_SUFFIXES | _TABLES.keys(), "'pydoc'", cache_dir)
    digest = repr([(split, table._fingerprint) for split, table in tables.items()])

    def rows(table: Any) -> Rows:
        return lambda: _table_rows(table, text_column, join_rows, data)

    return digest, {split: rows(table) for split, table in tables.items()}


def hub_tables(data: str, suffixes: Set[str], embedded: str, cache_dir: Path) -> dict[str, Any]:
    """The splits of a hub data set, as `datasets` tables.

    Args:
        data: "name" or "name:config".
        suffixes: suffixes of data files; a name with one of them is never looked up on the hub.
        embedded: data without download, which the error message suggests.
        cache_dir: folder for downloads.

    Raises:
        FileNotFoundError: neither a file nor a data set on the hub has this name.
        UserError: the data set has no split for training.
    """
    path = Path(os.path.expanduser(data))
    # Say which file was perhaps meant.
    missing = f"no text is at {path}"
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
        missing += f" (did you mean {path.with_name(near[0])}?)" if near else ""
    if path.is_absolute() or data[:1] in ".~" or path.suffix.lower() in suffixes:
        raise FileNotFoundError(f"{missing}: give a text file, a folder, a hub data set's name, or {embedded}")
    # Otherwise it is the name of a hub data set.
    name, _, config = data.partition(":")
    import datasets
    from huggingface_hub import constants

    if not online():  # only look in the cache, without half a minute of retries
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    # Download the data set, or find it in the cache.
    try:
        available = datasets.load_dataset(name, config or None, cache_dir=str(cache_dir))
    except Exception as error:  # no network, no such data set or no such config: errors of many types
        reason = f"the hub gave no data set {name!r} ({first_line(error)})"
        raise FileNotFoundError(f"{missing}, and {reason}: check the name") from error
    tables = {s: available[given] for s, names in SPLIT_NAMES.items() for given in available if given in names}
    if "train" not in tables:
        raise UserError(
            f"the data set {data!r} has no train split, only {', '.join(available)}: give another data set or config"
        )
    return tables


def _complete(given: dict[str, Rows], val_fraction: float, test_fraction: float) -> dict[str, Rows]:
    """Add missing splits: "val" from the end of the training rows, and "test" too if neither was given.

    In the latter case the rows were given without splits, and the split "predict" has all of them.
    """
    # Only missing splits get a share of the text, and "test" only where no split was given.
    unsplit = given.keys() == {"train"}
    val = 0.0 if "val" in given else val_fraction
    test = test_fraction if unsplit else 0.0
    if not val + test:
        return given
    all_rows = given["train"]
    total = 0  # bytes, counted at first use

    def cut(first: float, last: float) -> Rows:
        """The rows that start between two shares of the text."""

        def rows() -> Iterator[Row]:
            nonlocal total
            # A row belongs to the part in which it starts, counted in bytes.
            total = total or sum(len(text.encode()) for _, text in all_rows())
            at, is_first = 0, True
            for starts_document, text in all_rows():
                if at >= last * total:
                    return
                if at >= first * total:
                    yield starts_document or is_first, text
                    is_first = False
                at += len(text.encode())

        return rows

    # Training first, then validation, then test, in the order of the text.
    train = 1 - val - test
    splits = {"train": cut(0, train)} | ({"val": cut(train, train + val)} if val else {})
    splits |= ({"test": cut(train + val, 1)} if test else {}) | ({"predict": all_rows} if unsplit else {})
    return given | splits
