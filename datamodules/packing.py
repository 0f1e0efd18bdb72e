"""Packing text into a flat file of token ids, and reading windows from it without loading the file."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import Dataset

from zoo.datamodules.checksums import LazyCheck, checksums, find_damage
from zoo.datamodules.sources.corpus import Row, Rows
from zoo.errors import UserError
from zoo.files.atomic import replacing
from zoo.text_formats.json_text import dump_json, parse_json
from zoo.tokenizers import Tokenizer
from zoo.training.batches import IGNORED, TokenBatch

CHUNK_CHARACTERS = 1 << 16  # usual size of a chunk of a document
CHECKED_AT_START = 4 << 30  # bytes; of a larger file, whose check would take long, each part is checked when first read
COUNTS = ("tokens", "words", "bytes")
BATCH_CHARACTERS = 1 << 20  # size of what is encoded in one call; no chunk is longer, except for a single long row


def write_once(file: Path, write: Callable[[Path], None], damage: Callable[[], str | None]) -> None:
    """Create `file` unless it exists undamaged: `write(temporary)` writes a temporary file, which is then renamed.

    If several processes call this, one writes the file and the others wait. A damaged file is written again, and
    standard error says so.

    Args:
        file: the file.
        write: writes its content to the path that it gets.
        damage: what is wrong with the existing file, as the end of a sentence; None where nothing is.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    if file.exists() and damage() is None:
        return
    # The lock lets one process write, and the rename makes the file appear only when it is complete.
    # An existing file is complete; otherwise wait for the lock, and write it if it is still missing.
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            # While this process waited for the lock, another may have written the file.
            reason = damage() if file.exists() else None
            if reason is not None:
                print(f"zoo: {file} in the cache is damaged ({reason}): it is written again", file=sys.stderr)
            if reason is not None or not file.exists():
                with replacing(file, durable=True) as temporary:
                    write(temporary)
    except OSError as error:
        raise OSError(
            f"cannot write to the cache folder {file.parent} ({error.strerror or error}): free disk space, or choose"
            " another folder with $ZOO_CACHE or cache_dir"
        ) from error


def pack(rows: Rows, tokenizer: Tokenizer, file: Path) -> dict[str, int]:
    """Tokenize rows into `file`, unless that is done already. Memory does not grow with the text.

    Each document starts with BOS if the tokenizer has one. The counts and the checksums of `file` are stored next to
    it, with the suffix .json, which is written last: if it exists, `file` is complete. A file of at most 4 GiB is
    compared with its checksums once per process; of a larger one `Windows` checks the parts that it reads.

    Returns:
        The counts: "tokens"; "bytes" of UTF-8; "words" as on WikiText, that is, between white space, plus line ends.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """

    def write(temporary: Path) -> None:
        stats = _write_tokens(rows(), tokenizer, temporary)
        sums = checksums(temporary)
        os.replace(temporary, file)
        temporary.write_text(
            dump_json(stats | {"crc32": sums, "itemsize": token_dtype(tokenizer.vocab_size)(0).itemsize})
        )

    counts = file.with_suffix(".json")
    write_once(counts, write, lambda: _damage(file))
    return {name: _read_counts(file)[name] for name in COUNTS}


def _read_counts(file: Path) -> dict[str, Any]:
    """The counts and checksums of a packed file; {} where they cannot be read."""
    try:
        content = parse_json(file.with_suffix(".json").read_text(encoding="utf-8"))
    except ValueError:  # not JSON, or not UTF-8
        return {}
    if not isinstance(content, dict) or not isinstance(content.get("crc32"), list):
        return {}
    numbers = [content.get(name) for name in (*COUNTS, "itemsize")] + content["crc32"]
    return content if all(type(number) is int and number >= 0 for number in numbers) else {}


_intact: set[tuple[Path, int, int]] = set()  # files checked by this process: path, time of change, inode


def _damage(file: Path) -> str | None:
    """What is wrong with a packed file and its counts; None where nothing is, or another process has looked."""
    if os.environ.get("LOCAL_RANK", "0") != "0":  # the first process of the machine checks before the others start
        return None
    if not (counts := _read_counts(file)):
        return "its counts or its checksums cannot be read"
    if not file.exists():
        return "the tokens are missing"
    state = file.stat()
    if state.st_size != counts["tokens"] * counts["itemsize"]:
        return f"there are {state.st_size} bytes of tokens, not {counts['tokens'] * counts['itemsize']}"
    key = (file, state.st_mtime_ns, state.st_ino)
    if key not in _intact and state.st_size <= CHECKED_AT_START:
        if reason := find_damage(file, counts["crc32"]):
            return reason
        _intact.add(key)
    return None


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The narrowest unsigned integer type that holds every token id."""
    return np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32


def chunk_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Join rows into chunks of about 64 KB, none of which crosses the start of a document.

    A chunk ends after a line that contains text and before a line that is not indented, because no tokenizer merges
    characters across such a place. A single leading space, as on WikiText, is not an indent: a byte-level BPE merges it
    with the following word.
    """
    starts_document, lines, size = False, list[str](), 0
    for starts_here, text in rows:
        # End the chunk before the start of a document, where it is long enough and may end, or where it is too long.
        can_split = bool(lines and lines[-1].strip() and not text[:2].isspace())
        if lines and (starts_here or (size >= CHUNK_CHARACTERS and can_split) or size >= BATCH_CHARACTERS):
            yield starts_document, "".join(lines)
            starts_document, lines, size = False, [], 0
        starts_document |= starts_here
        lines.append(text)
        size += len(text)
    if lines:
        yield starts_document, "".join(lines)


def _write_tokens(rows: Iterable[Row], tokenizer: Tokenizer, file: Path) -> dict[str, int]:
    """Write the ids of all rows, flush them to disk, and return the counts."""
    # Encode batch by batch, and count tokens, words and bytes in passing.
    stats = {"tokens": 0, "words": 0, "bytes": 0}
    dtype = token_dtype(tokenizer.vocab_size)
    with file.open("wb") as out:
        for batch in _batches(chunk_rows(rows)):
            for ids in _encode(batch, tokenizer):
                out.write(np.asarray(ids, dtype).tobytes())  # unlike tofile, names the reason if the disk is full
                stats["tokens"] += len(ids)
            for _, text in batch:
                stats["words"] += len(text.split()) + text.count("\n")
                stats["bytes"] += len(text.encode())
        out.flush()
        os.fsync(out.fileno())
    return stats


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Group rows into lists of at least `BATCH_CHARACTERS` characters."""
    batch, size = list[Row](), 0
    for row in rows:
        batch.append(row)
        size += len(row[1])
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(batch: list[Row], tokenizer: Tokenizer) -> Iterator[list[int]]:
    """The ids of each row, with BOS where a document starts."""
    # Starts of documents and continuations are encoded separately, then yielded in the order of the rows.
    front = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    first = iter(tokenizer.encode_batch([text for is_start, text in batch if is_start]))
    later = iter(tokenizer.encode_batch([text for is_start, text in batch if not is_start], continued=True))
    for is_start, _ in batch:
        yield front + next(first) if is_start else next(later)


class Windows(Dataset):
    """Windows of a packed file as `TokenBatch` items: tokens (T,), targets (T,) one token ahead, index, words.

    Without `stride`, for training: complete windows that do not overlap. With it, for evaluation: a window starts
    `stride` tokens after the previous one and scores only the targets that the previous one has not scored, so that
    each token of the split except the first is scored exactly once; the last window is padded with zeros.

    Args:
        file: packed token ids.
        dtype: type of the ids in the file.
        seq_len: T, tokens per window.
        stride: tokens from one evaluation window to the next, from 1 to seq_len; None for training.
        n_words: words in the split; each window counts a share of them in proportion to its scored tokens.
    """

    def __init__(
        self,
        file: Path,
        dtype: type[np.unsignedinteger],
        seq_len: int,
        stride: int | None = None,
        n_words: int = 0,
    ) -> None:
        self._file, self._dtype, self.seq_len, self.stride = file, dtype, seq_len, stride
        size = file.stat().st_size
        self.n_tokens = size // np.dtype(dtype).itemsize
        self._check = LazyCheck(file, _read_counts(file).get("crc32", [])) if size > CHECKED_AT_START else None
        self.words_per_token = n_words / max(self.n_tokens - 1, 1)  # the first token is never predicted

    def __len__(self) -> int:
        # Without a stride only complete windows; with one, as many as cover the last token.
        if self.stride is None:
            return (self.n_tokens - 1) // self.seq_len
        return 1 + max(0, -(-(self.n_tokens - 1 - self.seq_len) // self.stride))

    def __getitem__(self, index: int) -> TokenBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        # T + 1 tokens, of which the first T are inputs and the last T targets.
        start = index * (self.stride or self.seq_len)
        stop = min(start + self.seq_len + 1, self.n_tokens)
        size = np.dtype(self._dtype).itemsize
        if self._check is not None and not self._check.is_intact(start * size, stop * size):
            self._file.with_suffix(".json").unlink(missing_ok=True)
            raise UserError(f"{self._file} in the cache is damaged: start again, which packs the text anew")
        window = torch.from_numpy(self._tokens[start:stop].astype(np.int64))
        # The last window may be shorter: pad it with targets that are not scored.
        missing = self.seq_len + 1 - len(window)
        tokens = torch.nn.functional.pad(window[:-1], (0, missing))  # (T,)
        targets = torch.nn.functional.pad(window[1:], (0, missing), value=IGNORED)  # (T,)
        scored = self.seq_len - missing
        # The previous window has scored all but the last `stride` targets of this one.
        if self.stride is not None and index > 0:
            targets[: self.seq_len - self.stride] = IGNORED
            scored -= self.seq_len - self.stride
        return TokenBatch(tokens, targets, torch.tensor(index), torch.tensor(scored * self.words_per_token))

    @cached_property
    def _tokens(self) -> np.ndarray:
        return np.memmap(self._file, self._dtype, mode="r")

    def __getstate__(self) -> dict:
        # Loader processes map the file themselves instead of receiving its content.
        return {name: value for name, value in vars(self).items() if name != "_tokens"}
