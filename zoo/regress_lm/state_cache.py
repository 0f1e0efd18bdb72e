"""Hidden states of a frozen encoder on disk, so that a text is encoded once in all runs on the same data."""

import hashlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoo.errors import UserError


class StateCache:
    """States (T, width) in float32 by the tokens of their text, in an SQLite file that several processes may share.

    Args:
        file: is created with its folder where it does not exist; its name holds the digest of the encoder.
        width: width of the states.
    """

    def __init__(self, file: Path, width: int) -> None:
        self.file, self.width = file, width
        self._connection: sqlite3.Connection | None = None
        self._process = -1

    def __getstate__(self) -> dict[str, Any]:  # a copy opens the file itself
        return vars(self) | {"_connection": None}

    def read(self, texts: Sequence[Sequence[int]]) -> list[Tensor | None]:
        """The states (T, width) of each text's tokens, None where they are not stored."""
        states: list[Tensor | None] = []
        for tokens in texts:
            row = self._execute("SELECT states FROM states WHERE tokens = ?", _key(tokens)).fetchone()
            # Other content can only come from a damaged file: encode the text again.
            is_valid = row is not None and isinstance(row[0], bytes) and len(row[0]) == 4 * len(tokens) * self.width
            states.append(
                torch.frombuffer(bytearray(row[0]), dtype=torch.float32).view(-1, self.width) if is_valid else None
            )
        return states

    def write(self, texts: Sequence[Sequence[int]], states: Sequence[Tensor]) -> None:
        """Store the states (T, width) of each text's tokens."""
        for tokens, values in zip(texts, states, strict=True):
            content = values.float().cpu().contiguous().numpy().tobytes()
            self._execute("INSERT OR REPLACE INTO states VALUES (?, ?)", _key(tokens), content)
        if self._connection is not None:
            self._connection.commit()

    def _execute(self, command: str, *values: bytes) -> sqlite3.Cursor:
        try:
            # A connection must not be used in a forked process.
            if self._connection is None or self._process != os.getpid():
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self._connection, self._process = sqlite3.connect(self.file, timeout=60), os.getpid()
                self._connection.execute("CREATE TABLE IF NOT EXISTS states (tokens BLOB PRIMARY KEY, states BLOB)")
            return self._connection.execute(command, values)
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"the states of the encoder cannot be stored in {self.file} ({error}): delete the file, set $ZOO_CACHE "
                "to a folder with more space, or set --model.encoder_cache false"
            ) from error


def _key(tokens: Sequence[int]) -> bytes:
    """16 bytes that identify the tokens of a text."""
    return hashlib.blake2b(np.asarray(tokens, dtype=np.int64).tobytes(), digest_size=16).digest()
