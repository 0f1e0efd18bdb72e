"""Packing text into a flat file of token ids, and reading windows from it without loading the file."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import Dataset

from zoo.datamodules.sources.corpus import Row, Rows
from zoo.files.atomic import replacing
from zoo.tokenizers import Tokenizer
from zoo.training.batches import IGNORED, TokenBatch

CHUNK_CHARACTERS = 1 << 16  # usual size of a chunk of a document
BATCH_CHARACTERS = 1 << 20  # size of what is encoded in one call; no chunk is longer, except for a single long row


def write_once(file: Path, write: Callable[[Path], None]) -> None:
    """Create `file` unless it exists: `write(temporary)` writes a temporary file, which is then renamed.

    If several processes call this, one writes the file and the others wait.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    if file.exists():
        return
    # The lock lets one process write, and the rename makes the file appear only when it is complete.
    # An existing file is complete; otherwise wait for the lock, and write it if it is still missing.
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.exists():  # while this process waited for the lock, another may have written the file
                with replacing(file, durable=True) as temporary:
                    write(temporary)
    except OSError as error:
        raise OSError(
            f"cannot write to the cache folder {file.parent} ({error.strerror or error}): free disk space, or choose"
            " another folder with $ZOO_CACHE or cache_dir"
        ) from error


def pack(rows: Rows, tokenizer: Tokenizer, file: Path) -> dict[str, int]:
    """Tokenize rows into `file`, unless that is done already. Memory does not grow with the text.

    Each document starts with BOS if the tokenizer has one. The counts are stored next to `file`, with the suffix .json,
    which is written last: if it exists, `file` is complete.

    Returns:
        The counts: "tokens"; "bytes" of UTF-8; "words" as on WikiText, that is, between white space, plus line ends.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """

    def write(temporary: Path) -> None:
        stats = _write_tokens(rows(), tokenizer, temporary)
        os.replace(temporary, file)
        temporary.write_text(json.dumps(stats))

    counts = file.with_suffix(".json")
    write_once(counts, write)
    return json.loads(counts.read_text())


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
        self.n_tokens = file.stat().st_size // np.dtype(dtype).itemsize
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
        window = torch.from_numpy(self._tokens[start : start + self.seq_len + 1].astype(np.int64))
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
