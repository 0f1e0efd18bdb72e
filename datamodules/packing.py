"""Tokens packed into a flat file, once, and windows read from it without loading it."""

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
from zoo.tokenizers import Tokenizer
from zoo.training.batches import IGNORED, TokenBatch

_PART, _BATCH = 1 << 16, 1 << 20  # characters: of a part of a document, and of what is encoded at a time


def once(file: Path, make: Callable[[Path], None]) -> None:
    """Have `make(half)` write a file that is then renamed to `file`, unless it is there already.

    Several processes may ask: one makes it, and the others wait.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    if file.exists():
        return
    half = file.with_suffix(".half")  # what a killed process left there is overwritten
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.exists():  # no other process made it meanwhile
                try:
                    make(half)
                    os.replace(half, file)
                finally:
                    half.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            f"the cache folder {file.parent} cannot be filled ({error.strerror or error}): make room there, or move"
            " the cache with $ZOO_CACHE or cache_dir"
        ) from error


def pack(rows: Rows, tokenizer: Tokenizer, file: Path) -> dict[str, int]:
    """Tokenize rows into `file`, once, and their counts into the .json beside it: where that is, `file` is whole.

    Each document starts with BOS where the tokenizer has one. Memory does not grow with the text.

    Returns:
        tokens; bytes of UTF-8; words, counted as on WikiText: between white space, plus line ends.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """

    def make(half: Path) -> None:
        stats = _write(rows(), tokenizer, half)
        os.replace(half, file)
        half.write_text(json.dumps(stats))

    counts = file.with_suffix(".json")
    once(counts, make)
    return json.loads(counts.read_text())


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The narrowest unsigned type that holds every id."""
    return np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32


def parts(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows joined into parts of about 64 KB that no document border crosses.

    A part ends after a line with text in it and before one that is not indented, where no tokenizer joins what is
    on both sides. (One leading space, as on WikiText, is no indent: a byte-level BPE keeps it with its word.)
    """
    opening, lines, size = False, list[str](), 0
    for opens, text in rows:
        calm = bool(lines and lines[-1].strip() and not text[:2].isspace())
        if lines and (opens or (size >= _PART and calm) or size >= _BATCH):
            yield opening, "".join(lines)
            opening, lines, size = False, [], 0
        opening |= opens
        lines.append(text)
        size += len(text)
    if lines:
        yield opening, "".join(lines)


def _write(rows: Iterable[Row], tokenizer: Tokenizer, file: Path) -> dict[str, int]:
    stats = {"tokens": 0, "words": 0, "bytes": 0}
    dtype = token_dtype(tokenizer.vocab_size)
    with file.open("wb") as out:
        for batch in _batches(parts(rows)):
            for ids in _encode(batch, tokenizer):
                out.write(np.asarray(ids, dtype).tobytes())  # tofile would not say why it failed
                stats["tokens"] += len(ids)
            for _, text in batch:
                stats["words"] += len(text.split()) + text.count("\n")
                stats["bytes"] += len(text.encode())
        out.flush()
        os.fsync(out.fileno())
    return stats


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch, size = list[Row](), 0
    for row in rows:
        batch.append(row)
        size += len(row[1])
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(batch: list[Row], tokenizer: Tokenizer) -> Iterator[list[int]]:
    front = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    first = iter(tokenizer.encode_batch([text for opens, text in batch if opens]))
    later = iter(tokenizer.encode_batch([text for opens, text in batch if not opens], continued=True))
    for opens, _ in batch:
        yield front + next(first) if opens else next(later)


class Windows(Dataset):
    """Windows of a packed file as `TokenBatch` items: tokens (T,), targets (T,) one token ahead, index, words.

    Without `stride`, for training: whole windows side by side. With it, for evaluation: a window starts `stride`
    tokens after the previous one and scores only what that one has not, so that each token but the first of the split
    is predicted exactly once; the last window is padded with zeros.

    Args:
        file: packed token ids.
        dtype: of the ids in the file.
        seq_len: T.
        stride: tokens from one evaluation window to the next; None for training.
        n_words: words in the split, shared among windows in proportion to their scored tokens.
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
        if self.stride is None:
            return (self.n_tokens - 1) // self.seq_len
        return 1 + max(0, -(-(self.n_tokens - 1 - self.seq_len) // self.stride))

    def __getitem__(self, index: int) -> TokenBatch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * (self.stride or self.seq_len)
        window = torch.from_numpy(self._tokens[start : start + self.seq_len + 1].astype(np.int64))
        missing = self.seq_len + 1 - len(window)
        tokens = torch.nn.functional.pad(window[:-1], (0, missing))  # (T,)
        targets = torch.nn.functional.pad(window[1:], (0, missing), value=IGNORED)  # (T,)
        scored = self.seq_len - missing
        if self.stride is not None and index > 0:
            targets[: self.seq_len - self.stride] = IGNORED
            scored -= self.seq_len - self.stride
        return TokenBatch(tokens, targets, torch.tensor(index), torch.tensor(scored * self.words_per_token))

    @cached_property
    def _tokens(self) -> np.ndarray:
        return np.memmap(self._file, self._dtype, mode="r")

    def __getstate__(self) -> dict:
        return {name: v for name, v in vars(self).items() if name != "_tokens"}  # workers map their own
