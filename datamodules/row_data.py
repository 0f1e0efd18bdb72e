"""What all data of texts with answers shares: rows of any table, hub data set or folder of files, in splits, tokenized.

A row that cannot be used is refused in one sentence that names its file and line, or left out and counted.
"""

import re
import sys
from abc import abstractmethod
from collections.abc import Set
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.datamodules.row_text import Layout, Rows, TextRows
from zoo.datamodules.sources import tables
from zoo.datamodules.sources.corpus import hub_tables, is_local, split_files
from zoo.datamodules.sources.tables import BadRows, Table, hub_table
from zoo.datamodules.text_data import TextData
from zoo.errors import UserError
from zoo.tokenizers import Tokenizer, train_bpe, train_words
from zoo.training.batches import collate
from zoo.training.random_streams import stream

_UNLABELLED = re.compile(r"(?<![a-z])(test|predict)(?![a-z])", re.IGNORECASE)


class RowData(TextData):
    """Batches of `zoo.training.batches.TextBatch`, those of like length together in training.

    A subclass has `data`, `bpe_vocab_size`, `val_fraction`, `test_fraction`, `split_seed` and `long_rows` among its
    hyperparameters, and says how a file is read, which of its columns are what, and how a text becomes tokens.
    """

    collate = staticmethod(collate)
    learnt = ("bpe", "words")
    embedded = ""  # the data set that needs no file, as a sentence offers it

    def __init__(
        self,
        batch_size: int,
        num_workers: int,
        seed: int | None,
        max_input_len: int,
        bad_rows: str,
        val_fraction: float,
        test_fraction: float,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        if not (val_fraction >= 0 and test_fraction >= 0 and val_fraction + test_fraction <= 1):
            raise UserError(
                f"val_fraction {val_fraction} and test_fraction {test_fraction} must be shares, together at most 1"
            )
        if max_input_len < 1:
            raise UserError(f"max_input_len must be at least 1, not {max_input_len}")
        self.max_input_len = max_input_len
        self._bad = BadRows(bad_rows)
        self._read: dict[str, Rows] = {}
        self._encoded: dict[str, TextRows] = {}

    # ---- what the models ask for

    @property
    def skipped(self) -> int:
        """How many rows have been left out, so far, for what was wrong with them."""
        return len(self._bad.reasons)

    def targets(self, split: str) -> np.ndarray:
        """(N, K) float64, NaN where unknown; as everywhere here, the training split's augmented copies included."""
        return self.dataset(split).targets

    def texts(self, split: str) -> list[str]:
        """The N texts."""
        return self.dataset(split).texts

    def lengths(self, split: str) -> np.ndarray:
        """(N,) tokens in each text."""
        return np.diff(self.dataset(split).starts)

    def train_lengths(self) -> torch.Tensor:
        return torch.from_numpy(self.lengths("train"))

    def dataset(self, split: str) -> TextRows:
        """The split's rows, tokenized when it is first asked for.

        Raises:
            ValueError: there is no such split, or a row in it cannot be used.
        """
        if split not in self._encoded:
            self._encoded[split] = self._encode(split)
        return self._encoded[split]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.skipped:
            count = "1 row was" if self.skipped == 1 else f"{self.skipped} rows were"
            rank_zero_only(print)(f"zoo: {count} left out{self._bad.first()}", file=sys.stderr)

    def learn(self, kind: str) -> Tokenizer:
        texts = self._spelt(self._rows("train").texts)
        return train_bpe(texts, self.hparams["bpe_vocab_size"]) if kind == "bpe" else train_words(texts)

    # ---- what a subclass says

    @abstractmethod
    def _table(self, file: Path) -> Table:
        """The rows of a file."""

    @abstractmethod
    def _labelled(self, table: Table) -> bool:
        """Whether the rows of a table have their answers."""

    @property
    @abstractmethod
    def _layout(self) -> Layout:
        """What the settings leave open is decided by the first table, and kept in them for other data to come."""

    @abstractmethod
    def _encode(self, split: str) -> TextRows: ...

    def _spelt(self, texts: list[str]) -> list[str]:
        """The texts as the tokenizer is given them."""
        return texts

    # ---- where rows come from

    def rows(self, split: str) -> Rows:
        """The texts and targets of a split, before anything is done to them: what a subclass may override.

        Raises:
            ValueError: there is no such split, or it has a bad row.
        """
        given = self._given
        if split == "predict":
            whole = () if {"val", "test"} & given.keys() else ("train",)
            return self._read_split(next(s for s in ("predict", *whole, "test", "val") if s in given), False)
        if "train" not in given and split not in given:
            raise UserError(f"{self.hparams['data']} has no row with a target: it can only be predicted")
        if split in given and (split != "train" or "val" in given):
            return self._read_split(split)
        if split == "test" and "val" in given:
            raise UserError(f"{self.hparams['data']} has no test split, only {', '.join(given)}")
        return self._parts[split]

    def _read_split(self, split: str, need_targets: bool = True) -> Rows:
        return self._layout.read(self._given[split], self._bad, need_targets)

    @cached_property
    def _given(self) -> dict[str, list[Table]]:
        """The tables of each split that is given, and those to predict: files named so that have no targets."""
        data, path = self.hparams["data"], Path(self.hparams["data"]).expanduser()
        if not is_local(path):
            found = hub_tables(data, tables.SUFFIXES, self.embedded, self.cache / "datasets")
            return {split: [hub_table(f"{data} ({split})", table)] for split, table in found.items()}
        given: dict[str, list[Table]] = {}
        for split, group in self._files(path, tables.SUFFIXES).items():
            for file in group:
                table = self._table(file)
                unlabelled = not path.is_file() and _UNLABELLED.search(file.stem) and not self._labelled(table)
                given.setdefault("predict" if unlabelled else split, []).append(table)
        return given

    def _files(self, path: Path, suffixes: Set[str]) -> dict[str, list[Path]]:
        """The files of each split."""
        return split_files(path, suffixes)

    @cached_property
    def _parts(self) -> dict[str, Rows]:
        """The training rows without, and those for, validation and test."""
        rows = self._read_split("train")
        val, test = (0.0 if s in self._given else self.hparams[f"{s}_fraction"] for s in ("val", "test"))
        return rows.cut({"val": val, "test": test}, stream(self.hparams["split_seed"], "split"))

    def _rows(self, split: str) -> Rows:
        """`rows`, read once and not empty."""
        if split not in self._read:
            self._read[split] = rows = self.rows(split)
            if not rows.texts:
                remedy = "lower val_fraction and test_fraction" if split == "train" else f"raise {split}_fraction"
                raise UserError(f"the {split} split of {self.hparams['data']} has no rows: {remedy}")
        return self._read[split]

    def _fits(self, place: str, ids: list[int]) -> bool:
        """Whether a text is of a length that can be used."""
        if not ids:
            self._bad.refuse(place, "the tokenizer finds nothing in its text")
            return False
        if len(ids) <= self.max_input_len or self.hparams["long_rows"] == "truncate":
            return True
        reason = f"its text has {len(ids)} tokens, more than max_input_len {self.max_input_len}"
        if self.hparams["long_rows"] == "stop":
            raise UserError(f"{place}: {reason}; raise that, or set long_rows to truncate or skip")
        self._bad.leave_out(place, reason)
        return False


def listed(names: str | None) -> list[str]:
    """What stands between commas."""
    return [name.strip() for name in (names or "").split(",") if name.strip()]
