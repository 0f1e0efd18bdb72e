"""Sources of text: rows of text for each split, from CPython's documentation, local files or the Hugging Face hub.

Tables and hub data sets are read with `datasets`. Plain text files are read here, because `datasets` opens them with
universal newlines, which changes \\r\\n and \\r to \\n; read here, they are reproduced exactly by a byte tokenizer.
"""

import difflib
import glob
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from zoo.datamodules.sources.remote import NAMED, remote_texts
from zoo.datamodules.sources.spans import Documents, Part, Source, Table, TextFile, check_utf8, divide
from zoo.errors import UserError
from zoo.files import regular_file
from zoo.files.remote_files import RemoteFile, is_url
from zoo.hub.connection import online

File = TypeVar("File", Path, RemoteFile, Path | RemoteFile)
SPLIT_NAMES = {
    "train": {"train", "training"},
    "val": {"val", "valid", "validation", "dev"},
    "test": {"test"},
}
_TABLES = {
    ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet",
}  # fmt: skip
TEXT_SUFFIXES = {".txt", ".text", ".md", ".rst", ".raw", ".tokens"}
HASHED_BYTES = 256 << 20  # a larger text is recognised by the names, sizes and times of its files instead
PART_BYTES = 128 << 20  # of text that one process packs into one shard


class Piece(NamedTuple):
    """Where the text of a split is: the n-th piece of the sources between shares of their bytes."""

    given: str
    shares: tuple[float, ...]
    number: int


@dataclass
class Corpus:
    """The splits of a text, and a digest that changes with their content.

    The splits are "train", "val" and often "test"; if the text was given without splits, also "predict", all of it.

    Args:
        digest: digest of the contents of a small text; for a large one, of the names, sizes and times of change of its
            files.
        splits: where the text of each split is.
        sources: opens the text of a given split; called at first use.
    """

    digest: str
    splits: dict[str, Piece]
    sources: Callable[[str], Sequence[Source]]

    def parts(self, split: str) -> list[Part]:
        """The text of a split in parts of about `PART_BYTES`, which can be read and packed independently."""
        given, shares, number = self.splits[split]
        return divide(self.sources(given), shares, number, PART_BYTES)


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
        data: "pydoc", a file, a folder, the URL of one, or a hub data set as "name" or "name:config".
        text_column: name of the column of a table that contains the text.
        join_rows: treat the rows of a table as lines of one document instead of documents.
        val_fraction: share of the text used for validation if no such split is given.
        test_fraction: share of the text used for testing if no splits are given.
        cache_dir: folder for the files of `datasets`.

    Raises:
        FileNotFoundError: neither a file nor a data set on the hub has this name.
        UserError: a file is not text, or a table lacks the column `text_column`.
    """
    # Find the sources of each given split, and a digest that changes with their content.
    path = Path(os.path.expanduser(data))
    sources: Callable[[str], Sequence[Source]]
    if data == "pydoc":
        documents = _pydoc()
        digest = hashlib.blake2b("\0".join(documents).encode()).hexdigest()
        given, sources = ["train"], lambda split: [Documents(documents)]
    elif is_url(data) or path.exists():
        suffixes = TEXT_SUFFIXES | _TABLES.keys()
        files: Mapping[str, Sequence[Path | RemoteFile]]
        if is_url(data):
            files = group_by_split(remote_texts(data, suffixes, _TABLES.keys(), HASHED_BYTES))
        else:
            files = split_files(path, suffixes)
        digest = _digest([file for group in files.values() for file in group])
        tables = cache_dir / digest[:32]  # because `datasets` recognises files by their time, not by their content
        given, sources = list(files), lambda split: [_source(f, text_column, join_rows, tables) for f in files[split]]
    else:
        hub = hub_tables(data, TEXT_SUFFIXES | _TABLES.keys(), "'pydoc'", cache_dir)
        digest = repr([(split, table._fingerprint) for split, table in hub.items()])
        given, sources = list(hub), lambda split: [Table(hub[split], text_column, join_rows, data)]
    # Cut the missing splits; the digest includes the settings that change the rows.
    splits = _complete(given, val_fraction, test_fraction)
    settings = repr((sorted(splits), text_column, join_rows, val_fraction, test_fraction))
    return Corpus(hashlib.blake2b((digest + settings).encode(), digest_size=16).hexdigest(), splits, cache(sources))


def _pydoc() -> list[str]:
    """CPython's documentation, as `help()` shows it: one document per topic, in the order of their names' hashes."""
    from pydoc_data.topics import topics

    def order(name: str) -> bytes:
        return hashlib.blake2b(name.encode()).digest()

    # Hash order mixes the topics, so that the splits are alike.
    return [topics[name] for name in sorted(topics, key=order)]


def data_label(data: str) -> str:
    """A short name of the data for file names: the name of its folder, its file or the hub data set."""
    path = Path(os.path.abspath(Path(os.path.expanduser(data))))
    if path.exists():
        return path.name if path.is_dir() else path.stem
    if is_url(data):
        data = str(Path(data.partition("?")[0].rstrip("/")).with_suffix(""))
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
        UserError: the files do not exist.
    """
    if path.is_file():
        return {"train": [path]}
    if path.exists() and not path.is_dir():
        regular_file(path, NAMED)  # refuses a pipe or a device
    # Use the files with known suffixes, and sort them into splits by their names.
    files = sorted(path.iterdir()) if path.is_dir() else _files_with_prefix(path)
    files = [file for file in files if file.suffix.lower() in suffixes and not file.is_dir()]
    if not files:
        kinds = ", ".join(sorted(suffixes))
        raise UserError(f"the folder {path} holds no text: none of its files has one of the suffixes {kinds}")
    for file in files:
        if not file.is_file():
            regular_file(file)  # refuses it
    return group_by_split(files)


def group_by_split(files: Sequence[File]) -> dict[str, list[File]]:
    """Files by the split that their names say, if one of them is named for training; otherwise all are "train"."""
    splits: dict[str, list[File]] = {}
    for file in files:
        if named := split_named(file.name):
            splits.setdefault(named, []).append(file)
    return splits if "train" in splits else {"train": list(files)}


def split_named(name: str) -> str | None:
    """The split that is part of a file's name, if any: "val" for reviews-dev.csv."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, names in SPLIT_NAMES.items() if words & names), None)


def _digest(files: Sequence[Path | RemoteFile]) -> str:
    """A digest of the files' contents, which must be UTF-8; of large files, of their names, sizes and times of change.

    Raises:
        UserError: a file is not UTF-8; the message names it and the offset of the wrong byte.
    """
    sizes = [file.size if isinstance(file, RemoteFile) else file.stat().st_size for file in files]
    is_hashed = sum(sizes) <= HASHED_BYTES
    digest = hashlib.blake2b()
    for file, size in zip(files, sizes, strict=True):
        digest.update(f"{file.name}\0{size}\0".encode())
        if isinstance(file, RemoteFile):
            digest.update(f"{file.version}\0".encode())
        elif not is_hashed:
            digest.update(f"{file.stat().st_mtime_ns}\0".encode())
        elif file.suffix.lower() == ".parquet":
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "blake2b").digest())
        else:
            check_utf8(file, digest.update)
    return digest.hexdigest()


def _source(file: Path | RemoteFile, text_column: str, join_rows: bool, cache_dir: Path) -> Source:
    builder = _TABLES.get(file.suffix.lower())
    if builder and isinstance(file, Path):
        return Table(_open_table(builder, file, cache_dir), text_column, join_rows, f"{file}")
    return TextFile(file)


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


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if that is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def hub_tables(data: str, suffixes: Set[str], embedded: str, cache_dir: Path) -> dict[str, Any]:
    """The splits of a hub data set, as `datasets` tables.

    Args:
        data: "name" or "name:config".
        suffixes: suffixes of data files; a name with one of them is never looked up on the hub.
        embedded: data without download, which the error message suggests.
        cache_dir: folder for downloads.

    Raises:
        FileNotFoundError: neither a file nor a data set on the hub has this name.
        UserError: the data set lacks a training split.
    """
    path = Path(os.path.expanduser(data))
    if is_url(data):
        raise UserError(f"{data}: a URL cannot be read here; copy the files, and give the copy")
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


def _complete(given: Sequence[str], val_fraction: float, test_fraction: float) -> dict[str, Piece]:
    """Where the text of each split is: missing ones are cut from the end of the training text.

    "val" is cut if it is missing, and "test" if neither was given. In the latter case the text was given without
    splits, and the split "predict" has all of it.
    """
    splits = {split: Piece(split, (0.0, 1.0), 0) for split in given}
    # Only missing splits get a share of the text, and "test" only where no split was given.
    unsplit = splits.keys() == {"train"}
    val = 0.0 if "val" in splits else val_fraction
    test = test_fraction if unsplit else 0.0
    if not val + test:
        return splits
    # Training first, then validation, then test, in the order of the text.
    train = 1 - val - test
    shares = (0.0, train, train + val, 1.0) if test else (0.0, train, 1.0)
    names = ["train"] + ["val"] * (val > 0) + ["test"] * (test > 0)
    splits |= {split: Piece("train", shares, number) for number, split in enumerate(names)}
    return splits | ({"predict": Piece("train", (0.0, 1.0), 0)} if unsplit else {})
