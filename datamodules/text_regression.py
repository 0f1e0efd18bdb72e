"""Numbers to be read from text: rows of any table, hub data set or folder of YAML files, as (text, targets)."""

from collections.abc import Set
from functools import cached_property
from itertools import chain
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import torch

from zoo.datamodules.augment import Augmentation
from zoo.datamodules.row_data import RowData, listed
from zoo.datamodules.row_text import Layout, RowFormat, Rows, TextRows, numbers_in
from zoo.datamodules.sources import tables
from zoo.datamodules.sources.tables import Table, read_table
from zoo.errors import UserError
from zoo.tokenizers.numerals import rounded
from zoo.training.random_streams import derive, stream

INTEGERS = "integers"
_YAML_TEXT, _YAML_TARGET = "news", "change_rate"  # the names that YAML files have by default


class TextRegression(RowData):
    """Batches of `zoo.training.batches.TextBatch`, those of like length together in training.

    "predict" is the files of a folder that have no target and are named so, such as test_target.yml; else all rows,
    where they were given without splits; else the test split, or the validation split where there is no other.

    Args:
        data: "integers", the identity on [-3000, 3000] (no download); a CSV, TSV, JSON-lines, Parquet or YAML file, or
            a folder of such files; or a hub data set, "name" or "name:config". Splits go by the names of a folder's
            files (train, valid, test) or by the hub's; the rest is cut from the training rows, at random. A `.txt`
            file is a TSV whose quotes are mere characters.
        tokenizer: "bytes"; "characters"; "bpe" or "words" (between spaces), learnt from the training texts; or a path
            for `load_tokenizer`.
        bpe_vocab_size: the size of the vocabulary that "bpe" learns.
        text_column: the column that holds the text; in YAML files "news".
        target_columns: the columns of the numbers to be predicted, with commas between; in YAML files "change_rate".
        columns: where there is no text_column, the columns that are turned into a text, with commas between; by
            default all but the targets and the group.
        row_format: how: "key_value" (`lr: 0.1, layers: 2`), "json", or "values" (`0.1 2`); by default the first, but
            "text", the column as it is, where there is only one.
        round_digits: significant digits to which the numbers in texts are rounded; by default they stay as they are.
        power_tokens: with round_digits, write each number as a mantissa and a power of ten, two words: 0.00041 as 4.1 e-4.
        column_names: the names of a CSV's or TSV's columns, with commas between, where it has no header.
        group_column: rows with the same value in it are never cut apart into different splits.
        max_input_len: tokens that a text may have.
        batch_size: rows per step on each rank.
        val_fraction: where no validation split is given, this share of the rows.
        test_fraction: the same for the test split, where neither split is given.
        split_seed: of that choice. It is not the run's, so that no seed ever tests on what another trained on.
        bad_rows: "skip" leaves out rows that cannot be used, and counts them in `skipped`; "stop" raises ValueError.
        long_rows: the same for texts beyond max_input_len, which "truncate" cuts off there.
        features: give the numbers in each text as well; every text must have as many.
        augment_copies: changed copies of every training row, which come after all the rows themselves.
        synonyms: change copies by this YAML file of words and lists of their synonyms; "english" is the zoo's own.
        background: change copies by a sentence before or after, from this text file of one a line.
        number_formats: change copies by writing 1000 as 1,000, 1e3 or 1000.0.
        jitter: change copies by multiplying each number in the text by exp(N(0, jitter^2)).
        target_jitter: change copies by multiplying their targets by exp(N(0, target_jitter^2)).
        num_workers: loader processes per rank.
        cache_dir: where hub data sets are kept; by default the folder named by $ZOO_CACHE, else ~/.cache/zoo.
        seed: of the training order and the augmentation; by default the run's own.
    """

    embedded = f"'{INTEGERS}'"

    def __init__(
        self,
        data: str = INTEGERS,
        tokenizer: str = "bytes",
        bpe_vocab_size: int = 4096,
        text_column: str | None = None,
        target_columns: str | None = None,
        columns: str | None = None,
        row_format: RowFormat | None = None,
        round_digits: int | None = None,
        power_tokens: bool = False,
        column_names: str | None = None,
        group_column: str | None = None,
        max_input_len: int = 2048,
        batch_size: int = 32,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        bad_rows: Literal["stop", "skip"] = "stop",
        long_rows: Literal["stop", "truncate", "skip"] = "stop",
        features: bool = False,
        augment_copies: int = 0,
        synonyms: str | None = None,
        background: str | None = None,
        number_formats: bool = False,
        jitter: float = 0.0,
        target_jitter: float = 0.0,
        num_workers: int = 0,
        cache_dir: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, max_input_len, bad_rows, val_fraction, test_fraction)
        self.save_hyperparameters(logger=False)  # a logger would have none of these differ from the model's
        if round_digits is not None and not 1 <= round_digits <= 17:
            raise UserError(f"round_digits must lie between 1 and 17, not at {round_digits}")
        self.round_digits, self.power_tokens = round_digits, power_tokens
        if text_column and (columns or row_format not in (None, "text")):
            raise UserError("text_column names the whole text: drop it, or drop columns and row_format")
        if features and jitter:
            raise UserError("features are the numbers as they stand: drop jitter, or features")
        changes = bool(synonyms or background or number_formats or jitter or target_jitter)
        if augment_copies < 0 or changes != bool(augment_copies):
            raise UserError(
                f"augment_copies is {augment_copies}: set it above 0 with synonyms, background, number_formats, jitter"
            )
        self._count: dict[str, int] = {}  # "numbers": the features of every row, once one is seen

    # ---- what the models ask for

    @property
    def n_objectives(self) -> int:
        """K, the numbers to be predicted for each text."""
        return len(listed(self.hparams["target_columns"]) or [_YAML_TARGET])

    @property
    def n_features(self) -> int:
        """F, the numbers in each text; 0 where they were not asked for."""
        if not self.hparams["features"]:
            return 0
        if not self._count:
            self.dataset("train")
        return self._count["numbers"]

    def features(self, split: str) -> np.ndarray | None:
        """(N, F) float32, the numbers in each text; None where they were not asked for."""
        return self.dataset(split).features

    # ---- where rows come from

    def rows(self, split: str) -> Rows:
        return _integers(split) if self.hparams["data"] == INTEGERS else super().rows(split)

    def _table(self, file: Path) -> Table:
        return read_table(file, listed(self.hparams["column_names"]) or None, self._bad)

    def _files(self, path: Path, suffixes: Set[str]) -> dict[str, list[Path]]:
        files = super()._files(path, suffixes)
        taken = set(chain(*files.values()))
        texts = [file for file in sorted(path.iterdir()) if file.suffix in tables.YAML] if path.is_dir() else []
        if left := [file for file in texts if file not in taken]:  # a news item called "train" is no training split
            raise UserError(
                f"{path} has files for training by their names, and {left[0].name}, which names no split: rename either"
            )
        return files

    def _labelled(self, table: Table) -> bool:
        known = chain(table.columns or (), *(cells for _, cells in table.rows))
        return not {*known}.isdisjoint(listed(self.hparams["target_columns"]) or [_YAML_TARGET])

    @cached_property
    def _layout(self) -> Layout:
        """What the settings leave open is decided by the first table, and kept in them for other data to come."""
        h, table = self.hparams, next(chain(*self._given.values()))
        names = table.columns if table.columns is not None else list(table.rows[0][1]) if table.rows else []
        yaml = table.columns is None and Path(table.name).suffix.lower() in tables.YAML
        targets = listed(h["target_columns"]) or ([_YAML_TARGET] if yaml else [])
        inputs = listed(h["columns"]) or [n for n in names if n not in {*targets, h["group_column"]}]
        if h["text_column"] or (yaml and not h["columns"] and h["row_format"] in (None, "text")):
            inputs = [h["text_column"] or _YAML_TEXT]
        row_format: RowFormat = h["row_format"] or ("text" if len(inputs) == 1 else "key_value")
        if row_format == "text" and len(inputs) != 1:
            raise UserError(f"row_format text needs to know the column: set text_column to one of {', '.join(inputs)}")
        if not inputs:
            raise UserError(f"{table.name} has no column besides {', '.join(names)} to read: it needs a text")
        if row_format == "text":
            h["text_column"], h["columns"] = inputs[0], None
        elif not any("," in name for name in inputs):
            h["columns"], h["row_format"] = ",".join(inputs), row_format
        return Layout(inputs, targets, row_format, h["group_column"])

    # ---- tokens

    def _encode(self, split: str) -> TextRows:
        rows, limit = self._rows(split), self.max_input_len
        ids = self.tokenizer.encode_batch(self._spelt(rows.texts))
        features = [numbers_in(text) for text in rows.texts] if self.hparams["features"] else None
        kept = [i for i in range(len(ids)) if self._usable(rows.places[i], ids[i], features[i] if features else None)]
        if not kept:
            raise UserError(f"no row of the {split} split is left{self._bad.first()}")
        texts, ids = [rows.texts[i] for i in kept], [ids[i][:limit] for i in kept]
        copies = self.hparams["augment_copies"] if split == "train" else 0
        return TextRows(
            *self._with_copies(texts, ids, copies),
            self._with_copied_targets(rows.targets[kept], copies),
            np.tile(np.array([features[i] for i in kept], dtype=np.float32), (1 + copies, 1)) if features else None,
        )

    def _usable(self, place: str, ids: list[int], features: list[float] | None) -> bool:
        """Whether a row can be used; all rows of all splits must have as many features as the first."""
        if not self._fits(place, ids):
            return False
        if features and max(map(abs, features)) > float(np.finfo(np.float32).max):
            self._bad.refuse(place, "a number in its text is too large for a feature")
            return False
        if features is not None and len(features) != self._count.setdefault("numbers", len(features)):
            self._bad.refuse(place, f"its text has {len(features)} numbers, the first row's {self._count['numbers']}")
            return False
        return True

    def _with_copies(self, texts: list[str], ids: list[list[int]], copies: int) -> tuple[list[str], list[list[int]]]:
        """All rows, then the first copies of all, and so on; a copy that would be too long is left unchanged."""
        h = self.hparams
        change = Augmentation(h["synonyms"], h["background"], h["number_formats"], h["jitter"])
        all_texts, all_ids = [*texts], [*ids]
        for copy in range(copies):
            new = [change(text, Random(derive(self.seed, "augment", row, copy))) for row, text in enumerate(texts)]
            new_ids = self.tokenizer.encode_batch(self._spelt(new))
            for row, tokens in enumerate(new_ids):
                if len(tokens) > self.max_input_len:
                    new[row], new_ids[row] = texts[row], ids[row]
            all_texts += new
            all_ids += new_ids
        return all_texts, all_ids

    def _with_copied_targets(self, targets: np.ndarray, copies: int) -> np.ndarray:
        """(N (1 + copies), K): the targets (N, K) of all rows, then those of the first copies, and so on."""
        noise = torch.randn(copies, *targets.shape, generator=stream(self.seed, "target jitter"), dtype=torch.float64)
        jittered = targets * np.exp(self.hparams["target_jitter"] * noise.numpy())
        return np.concatenate([targets, jittered.reshape(-1, targets.shape[1])])

    def _spelt(self, texts: list[str]) -> list[str]:
        """The texts, their numbers rounded where that was asked for."""
        digits, power_tokens = self.hparams["round_digits"], self.hparams["power_tokens"]
        return [rounded(text, digits, power_tokens) for text in texts] if digits else texts


def _integers(split: str) -> Rows:
    """y = x as issue 57 of upstream RegressLM has it, which its recipe does not learn."""
    parts = {"train": slice(0, 2560), "val": slice(2560, 3200), "test": slice(3200, 5760), "predict": slice(3200, 5760)}
    x = np.random.default_rng(42).permutation(np.arange(-3000, 3001))[parts[split]]
    texts = [f"X1: {value}" for value in x]
    return Rows(texts, x[:, None].astype(np.float64), texts, texts)
