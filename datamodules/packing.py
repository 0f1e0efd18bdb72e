"""Tokens packed into a flat file, once, and windows read from it without loading it."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import Dataset

from datamodules.corpus import Corpus, Row
from zoo.tokenizers import Tokenizer

IGNORED = -100  # a target that is not scored; what torch's cross_entropy leaves out
_PART, _BATCH = 1 << 16, 1 << 20  # characters: of a part of a document, and of what is encoded at a time


def pack(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> dict[str, dict[str, int]]:
    """Tokenize every split into `folder/<split>.bin`, unless it has been done; several processes may call it.

    Each document starts with BOS where the tokenizer has one. Memory does not grow with the text.

    Returns:
        per split: tokens; bytes of UTF-8; words, counted as on WikiText: between white space, plus line ends.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():  # no other process did it meanwhile
                half = folder.with_suffix(".half")  # what a killed process left there is overwritten
                shutil.rmtree(half, ignore_errors=True)
                half.mkdir()
                splits = corpus.splits.items()
                stats = {split: _write(rows(), tokenizer, half / f"{split}.bin") for split, rows in splits}
                (half / "stats.json").write_text(json.dumps(stats))
                os.replace(half, folder)
    return json.loads((folder / "stats.json").read_text())


def token_dtype(vocab_size: int) -> type[np.unsignedinteger]:
    """The narrowest unsigned type that holds every id."""
    return np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32


def parts(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows joined into parts of about 64 KB that no document border crosses.

    A part ends between two lines with text in them, where no tokenizer joins what is on both sides.
    """
    opening, lines, size = False, list[str](), 0
    for opens, text in rows:
        calm = bool(lines and lines[-1].strip() and text.strip())
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
                np.asarray(ids, dtype).tofile(out)
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
    """Windows on a packed file; item i is (inputs (T,), targets (T,), i), int64, targets a token ahead.

    Without `stride`, for training: whole windows, side by side. With it, for evaluation: a window starts
    `stride` tokens after the one before it and scores only what that one has not (its other targets are -100),
    so that each token but the very first is predicted exactly once; the last window is filled up with zeros.
    """

    def __init__(
        self, file: Path, dtype: type[np.unsignedinteger], seq_len: int, stride: int | None = None
    ) -> None:
        self._file, self._dtype, self.seq_len, self.stride = file, dtype, seq_len, stride
        self.n_tokens = file.stat().st_size // np.dtype(dtype).itemsize

    def __len__(self) -> int:
        if self.stride is None:
            return (self.n_tokens - 1) // self.seq_len
        return 1 + max(0, -(-(self.n_tokens - 1 - self.seq_len) // self.stride))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * (self.stride or self.seq_len)
        tokens = torch.from_numpy(self._tokens[start : start + self.seq_len + 1].astype(np.int64))
        missing = self.seq_len + 1 - len(tokens)
        inputs = torch.nn.functional.pad(tokens[:-1], (0, missing))  # (T,)
        targets = torch.nn.functional.pad(tokens[1:], (0, missing), value=IGNORED)  # (T,)
        if self.stride is not None and index > 0:
            targets[: self.seq_len - self.stride] = IGNORED
        return inputs, targets, index

    @cached_property
    def _tokens(self) -> np.ndarray:
        return np.memmap(self._file, self._dtype, mode="r")

    def __getstate__(self) -> dict:
        return {name: v for name, v in vars(self).items() if name != "_tokens"}  # workers map their own
