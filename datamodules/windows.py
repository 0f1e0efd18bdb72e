"""Windows of packed token ids, read without loading the files."""

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from zoo.datamodules import packing
from zoo.datamodules.checksums import LazyCheck
from zoo.datamodules.packing import read_counts, shard_files
from zoo.errors import UserError
from zoo.layers.linear_nll import IGNORED
from zoo.training.batches import TokenBatch

OPEN_SHARDS = 256  # mapped at the same time: the system limits the number of maps and of open files


class PackedTokens:
    """Token ids of a packed file and all its shards, as one sequence.

    Args:
        file: the packed file.
        dtype: type of the ids in the file.

    Raises:
        UserError: on reading, if a part of a file larger than 4 GiB differs from its checksum.
    """

    def __init__(self, file: Path, dtype: type[np.unsignedinteger]) -> None:
        self._file, self._dtype = file, dtype
        shards = shard_files(file) if read_counts(file) else [(file, file.stat().st_size // np.dtype(dtype).itemsize)]
        self._shards = [shard for shard, _ in shards]
        self._starts = [0, *accumulate(tokens for _, tokens in shards)]
        self._is_checked = len(self) * np.dtype(dtype).itemsize > packing.CHECKED_AT_START
        self._open = lru_cache(OPEN_SHARDS)(self._map)

    def __len__(self) -> int:
        return self._starts[-1]

    def _map(self, shard: int) -> tuple[np.ndarray, LazyCheck | None]:
        file = self._shards[shard]
        check = LazyCheck(file, read_counts(file).get("crc32", [])) if self._is_checked else None
        empty = self._starts[shard] == self._starts[shard + 1]
        return np.empty(0, self._dtype) if empty else np.memmap(file, self._dtype, mode="r"), check

    def read(self, start: int, stop: int) -> np.ndarray:
        """The ids from `start` to `stop`: a view of the file where one shard contains them, otherwise a copy."""
        pieces = []
        shard = bisect_right(self._starts, start) - 1
        while start < stop:
            first, end = start - self._starts[shard], min(stop, self._starts[shard + 1]) - self._starts[shard]
            tokens, check = self._open(shard)
            size = tokens.itemsize
            if check is not None and not check.is_intact(first * size, end * size):
                # The next start packs this shard again, and only this one.
                for file in {self._shards[shard], self._file}:
                    file.with_suffix(".json").unlink(missing_ok=True)
                raise UserError(
                    f"{self._shards[shard]} in the cache is damaged: start again, which packs the text again"
                )
            pieces.append(tokens[first:end])
            start, shard = self._starts[shard] + end, shard + 1
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, self._dtype), *pieces])

    def __getstate__(self) -> dict[str, Any]:
        # Loader processes map the files themselves instead of receiving their content.
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open = lru_cache(OPEN_SHARDS)(self._map)


class Windows(Dataset):
    """Windows of a packed file as `TokenBatch` items: tokens (T,), targets (T,) one token ahead, index, words.

    Without `stride`, for training: complete windows that do not overlap. With it, for evaluation: a window starts
    `stride` tokens after the previous one and scores only targets not yet scored by the previous one, so that
    each token of the split except the first is scored exactly once; the last window is padded with zeros.

    Args:
        file: packed token ids, with or without shards.
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
        self.tokens, self.seq_len, self.stride = PackedTokens(file, dtype), seq_len, stride
        self.n_tokens = len(self.tokens)
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
        window = torch.from_numpy(self.tokens.read(start, stop).astype(np.int64))
        # The last window may be shorter: pad it with targets that are not scored.
        missing = self.seq_len + 1 - len(window)
        tokens = torch.nn.functional.pad(window[:-1], (0, missing))  # (T,)
        targets = torch.nn.functional.pad(window[1:], (0, missing), value=IGNORED)  # (T,)
        scored = self.seq_len - missing
        # The previous window has scored all but the last `stride` targets of this one.
        if self.stride is not None and index > 0:
            targets[: self.seq_len - self.stride] = IGNORED
            scored -= self.seq_len - self.stride
        words = torch.tensor(scored * self.words_per_token, dtype=torch.float32)
        return TokenBatch(tokens, targets, torch.tensor(index), words)
