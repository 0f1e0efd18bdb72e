"""RowSettings: the options of all data modules of rows."""

import os
from dataclasses import dataclass
from typing import Literal

from zoo.datamodules.sources.separated import SEPARATORS
from zoo.errors import UserError, check_choice, check_counts, check_number
from zoo.text_formats.json_text import shorten


@dataclass
class RowSettings:
    """Settings of all data modules of rows.

    Args:
        data: a CSV, TSV, JSON-lines, Parquet or YAML file; a folder of such files; the beginning of their names
            (`reviews/sst` for reviews/sst-train.txt and so on); a hub data set, "name" or "name:config"; or the name
            of a generated data set. Splits are given by the names of files (train, valid or dev, test), if one of them
            has train in its name, or by the hub; a missing one is cut from the training rows at random.
        tokenizer: "bytes"; "characters"; "bpe" or "words" (split at white space), trained on the training texts; or a
            path that `load_tokenizer` takes.
        bpe_vocab_size: number of tokens of tokenizer=bpe; at least 257.
        max_input_len: largest number of tokens of a text; at least 1.
        batch_size: rows per step on each rank; at least 1.
        val_fraction: fraction of the training rows cut off as validation split where the data has none, from 0 to 1.
        test_fraction: fraction of the training rows cut off as test split where the data has neither a validation nor
            a test split, from 0 to 1.
        split_seed: seed of these random cuts. It is not the run's seed, so all runs are tested on the same rows.
        bad_rows: what to do with a row that cannot be used: "stop" with an error that names its file and line, or
            "skip" it and count it.
        long_rows: what to do with a text of more than max_input_len tokens: "stop" with an error, "skip" it and count
            it, or "truncate" it.
        num_workers: loader processes per rank, at least 0; 0 loads in the training process.
        cache_dir: folder for hub data sets; default: the folder in $ZOO_CACHE, else ~/.cache/zoo.
        seed: seed of the order of training rows and of augmentation; default: the run's seed.
        separator: separator of the columns of CSV and TSV files: "comma", "semicolon", "tab", "blank" or "bar" (|);
            default: that of the suffix, unless only another one gives a table.
    """

    data: str
    tokenizer: str = "bytes"
    bpe_vocab_size: int = 4096
    max_input_len: int = 2048
    batch_size: int = 32
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    split_seed: int = 0
    bad_rows: Literal["stop", "skip"] = "stop"
    long_rows: Literal["stop", "truncate", "skip"] = "stop"
    num_workers: int = 0
    cache_dir: str | None = None
    seed: int | None = None
    separator: Literal["comma", "semicolon", "tab", "blank", "bar"] | None = None

    def __post_init__(self) -> None:
        self.data = os.fspath(self.data) if isinstance(self.data, os.PathLike) else self.data
        check_text("--data.data", self.data)
        check_counts(**{"--data.batch_size": self.batch_size})
        for name, choices in (("bad_rows", ("stop", "skip")), ("long_rows", ("stop", "truncate", "skip"))):
            check_choice(f"--data.{name}", getattr(self, name), choices)
        if self.separator is not None:
            check_choice("--data.separator", self.separator, SEPARATORS)
        for name in ("val_fraction", "test_fraction"):
            check_number(f"--data.{name}", getattr(self, name), "a fraction", lambda value: True)
        # The cuts may take all training rows, but not more.
        val, test = self.val_fraction, self.test_fraction
        if not (val >= 0 and test >= 0 and val + test <= 1):
            raise UserError(
                f"--data.val_fraction {val} and --data.test_fraction {test} must be fractions, together at most 1"
            )
        check_counts(**{"--data.max_input_len": self.max_input_len})


def check_text(name: str, value: object, is_list: bool = False) -> None:
    """Raises UserError if a setting is not a text or, with `is_list`, a text or a list of texts."""
    texts = value if is_list and isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name} must be a text{' or a list of texts' * is_list}, not {shorten(value)}")
