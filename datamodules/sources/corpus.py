"""Where text comes from: rows of text for each split, from CPython's documentation, local files or the hub.

A row is (opens, text): `opens` says that a new document begins with it. Tables and the hub go through
`datasets`. Plain text files are read here: `datasets` opens them with universal newlines, which turns each
\\r\\n and \\r into \\n, while from here a byte tokenizer gives back the file to the byte.
"""

import codecs
import difflib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import UserError
from zoo.hub.connection import online

Row = tuple[bool, str]
Rows = Callable[[], Iterable[Row]]

SPLIT_NAMES = {
    "train": {"train", "training"},
    "val": {"val", "valid", "validation", "dev"},
    "test": {"test"},
}
_TABLES = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
_TEXTS = {".txt", ".text", ".md", ".rst", ".raw", ".tokens"}
_LONGEST_LINE = 1 << 20  # characters; a longer line is taken in parts


@dataclass
class Corpus:
    """The rows of every split there is, and a digest of all they hold.

    The splits are train, val and often test; where none were given, also "predict", the whole text.
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
    """The text that `data` names: "pydoc", a file, a folder, or a hub data set as "name" or "name:config".

    Raises:
        FileNotFoundError: it is neither here nor on the hub.
        ValueError: what is there is not text, or has no column `text_column`.
    """
    path = Path(data).expanduser()
    if data == "pydoc":
        digest, given = _pydoc()
    elif path.exists():
        files = split_files(path, _TEXTS | _TABLES.keys())
        digest = _digest(file for group in files.values() for file in group)
        tables = cache_dir / digest[:32]  # datasets goes by a file's time, not by what it holds
        given = {s: _file_rows(group, text_column, join_rows, tables) for s, group in files.items()}
    else:
        digest, given = _hub(data, text_column, join_rows, cache_dir)
    given = _complete(given, val_fraction, test_fraction)
    settings = repr((sorted(given), text_column, join_rows, val_fraction, test_fraction))
    return Corpus(hashlib.blake2b((digest + settings).encode(), digest_size=16).hexdigest(), given)


def _pydoc() -> tuple[str, dict[str, Rows]]:
    """CPython's documentation, as `help()` shows it: a document per topic, in an order without meaning."""
    from pydoc_data.topics import topics

    def order(name: str) -> bytes:
        return hashlib.blake2b(name.encode()).digest()

    documents = [topics[name] for name in sorted(topics, key=order)]
    digest = hashlib.blake2b("\0".join(documents).encode()).hexdigest()
    return digest, {"train": lambda: ((True, text) for text in documents)}


def data_label(data: str) -> str:
    """What runs on `data` are filed under: the name of its folder, or of its file, or on the hub."""
    path = Path(os.path.abspath(Path(data).expanduser()))
    if path.exists():
        return path.name if path.is_dir() else path.stem
    return re.sub(r"[^\w.-]+", "-", data.rpartition("/")[2])


def is_local(path: Path) -> bool:
    """Whether `path` is a file, a folder, or what the names of files begin with: `sst` for sst-train.txt."""
    return path.exists() or bool(_begun(path))


def _begun(path: Path) -> list[Path]:
    """The files beside `path` whose names go on from its own with a -, _ or dot."""
    found = path.parent.glob(f"{path.name}[-_.]*") if path.name and path.parent.is_dir() else ()
    return sorted(file for file in found if file.is_file())


def split_files(path: Path, suffixes: Set[str]) -> dict[str, list[Path]]:
    """The files of each split. A folder's go by their names, if one of them is for training."""
    if path.is_file():
        return {"train": [path]}
    files = sorted(path.iterdir()) if path.is_dir() else _begun(path)
    files = [file for file in files if file.suffix.lower() in suffixes]
    if not files:
        kinds = ", ".join(sorted(suffixes))
        raise UserError(f"the folder {path} holds no text: none of its files ends in {kinds}")
    splits: dict[str, list[Path]] = {}
    for file in files:
        if named := split_named(file.name):
            splits.setdefault(named, []).append(file)
    return splits if "train" in splits else {"train": files}


def split_named(name: str) -> str | None:
    """The split that a file's name speaks of, if any."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    return next((split for split, names in SPLIT_NAMES.items() if words & names), None)


def _digest(files: Iterable[Path]) -> str:
    """A digest of the files' contents, which are found to be UTF-8 on the way.

    Raises:
        ValueError: a file is not, naming it and the offending byte's offset.
    """
    digest = hashlib.blake2b()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        decoder, at = codecs.getincrementaldecoder("utf-8")(), 0
        with file.open("rb") as content:
            while True:
                block = content.read(1 << 20)
                pending = len(decoder.getstate()[0])
                try:
                    decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    byte = f"byte 0x{error.object[error.start]:02x} at offset {at - pending + error.start}"
                    raise UserError(f"{file} is not UTF-8 text: {byte} does not belong there") from error
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
    with file.open(encoding="utf-8", newline="\n") as text:  # lines end at \n alone, and keep their \r
        opens = True
        while line := text.readline(_LONGEST_LINE):
            yield opens, line
            opens = False


def _open_table(builder: str, file: Path, cache_dir: Path) -> Any:
    from datasets import load_dataset

    options: dict[str, Any] = {}
    if builder == "csv":
        options["keep_default_na"] = False  # a text of "NA" is a text, not a gap
        options["sep"] = "\t" if file.suffix.lower() == ".tsv" else ","
    try:
        return load_dataset(builder, data_files=str(file), split="train", cache_dir=str(cache_dir), **options)
    except Exception as error:  # datasets wraps what its parsers raise in errors of its own
        reason = first_line(error.__cause__ or error)
        raise UserError(f"{file} cannot be read as a table ({reason})") from error


def _table_rows(table: Any, column: str, join_rows: bool, name: str) -> Iterator[Row]:
    """Each row a document; with join_rows each a line of one document."""
    if column not in table.column_names:
        columns = ", ".join(table.column_names)
        raise UserError(f"{name} has no column {column!r}: set text_column to one of {columns}")
    opens = True
    for row in table.select_columns([column]):
        text = "" if row[column] is None else str(row[column])
        if join_rows and not text.endswith("\n"):
            text += "\n"
        if text:
            yield opens or not join_rows, text
            opens = False


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def _hub(data: str, text_column: str, join_rows: bool, cache_dir: Path) -> tuple[str, dict[str, Rows]]:
    tables = hub_tables(data, _TEXTS | _TABLES.keys(), "'pydoc'", cache_dir)
    digest = repr([(split, table._fingerprint) for split, table in tables.items()])

    def rows(table: Any) -> Rows:
        return lambda: _table_rows(table, text_column, join_rows, data)

    return digest, {split: rows(table) for split, table in tables.items()}


def hub_tables(data: str, suffixes: Set[str], embedded: str, cache_dir: Path) -> dict[str, Any]:
    """The splits of the hub data set "name" or "name:config"; `suffixes` tell what can only be a file's name.

    Raises:
        FileNotFoundError: it is neither here nor on the hub; `embedded` is then a default to be offered.
        ValueError: it has no split for training.
    """
    path = Path(data).expanduser()
    missing = f"no text is at {path}"
    if path.parent.is_dir():
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1)
        missing += f" (did you mean {path.with_name(near[0])}?)" if near else ""
    if path.is_absolute() or data[:1] in ".~" or path.suffix.lower() in suffixes:
        raise FileNotFoundError(f"{missing}: give a text file, a folder, a hub data set's name, or {embedded}")
    name, _, config = data.partition(":")
    import datasets
    from huggingface_hub import constants

    if not online():  # look in the cache at once, without half a minute of retries
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        found = datasets.load_dataset(name, config or None, cache_dir=str(cache_dir))
    except Exception as error:  # no network, no such data set, no such config: there are many ways to say no
        reason = f"the hub gave no data set {name!r} ({first_line(error)})"
        raise FileNotFoundError(f"{missing}, and {reason}") from error
    tables = {s: found[given] for s, names in SPLIT_NAMES.items() for given in found if given in names}
    if "train" not in tables:
        raise UserError(f"the data set {data!r} has no train split; it has {', '.join(found)}")
    return tables


def _complete(given: dict[str, Rows], val_fraction: float, test_fraction: float) -> dict[str, Rows]:
    """A missing split is cut from the end of the training rows; test only where val is missing too.

    Then the rows were given without splits, and "predict" has them all.
    """
    unsplit = given.keys() == {"train"}
    val = 0.0 if "val" in given else val_fraction
    test = test_fraction if unsplit else 0.0
    if not val + test:
        return given
    whole = given["train"]
    total = 0  # bytes, counted when first needed

    def part(first: float, last: float) -> Rows:
        def rows() -> Iterator[Row]:
            nonlocal total
            total = total or sum(len(text.encode()) for _, text in whole())
            at, opened = 0, False
            for opens, text in whole():
                if at >= last * total:
                    return
                if at >= first * total:
                    yield opens or not opened, text
                    opened = True
                at += len(text.encode())

        return rows

    cut = 1 - val - test
    parts = {"train": part(0, cut)} | ({"val": part(cut, cut + val)} if val else {})
    return given | parts | ({"test": part(cut + val, 1)} if test else {}) | ({"predict": whole} if unsplit else {})
