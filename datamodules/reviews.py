"""Texts with labels: `label ||| text` files, CSV, TSV, JSON lines or a hub data set, as batches for a classifier."""

import sys
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.datamodules.opinions import OPINIONS, ROWS, opinions
from zoo.datamodules.row_data import RowData, listed
from zoo.datamodules.row_text import Layout, Rows, TextRows, written
from zoo.datamodules.sources.corpus import split_named
from zoo.datamodules.sources.labels import Labels, found, read_labels
from zoo.datamodules.sources.tables import Table, read_labelled, read_table
from zoo.datamodules.text_data import SPLITS
from zoo.errors import UserError


class Reviews(RowData):
    """Batches of `zoo.training.batches.TextBatch`, each target the number of a class; texts of like length in one step.

    "predict" is all rows of a file, else the test split, or the validation split where there is no other.

    Args:
        data: "opinions", made-up ones (no download); a file or a folder: `.txt` has lines `label ||| text`, as CMU's
            minllama course has them; CSV, TSV, JSON lines and Parquet have columns. `reviews/sst` stands for all files
            whose names begin so. Or a hub data set, "name" or "name:config". Splits go by the names of files (train,
            dev, test) or by the hub's; the rest is cut from the training rows, at random.
        label_names: what the labels 0, 1, ... are called, with commas between or as a list; or {label: name}, in which
            several labels may share a name; or the path of a JSON file of such a list or object. By default the labels
            of the training rows are their own names. As a setting it is kept in JSON.
        unlabelled: splits, with commas between, whose labels are mere placeholders: they are not read, and no score is
            made of them.
        prompt: what a model is given instead of the bare text: {text} stands for it, {choices} for the label names.
        lowercase: the model reads texts in lower case.
        tokenizer: "bytes"; "characters"; "bpe" or "words" (between spaces), learnt from the training texts; or a path
            for `load_tokenizer`. Each text is opened by its BOS, if it has one.
        bpe_vocab_size: the size of the vocabulary that "bpe" learns.
        text_column, label_column: of a table.
        max_input_len: tokens that a text, with its prompt and BOS, may have.
        batch_size: rows per step on each rank.
        val_fraction: where no validation split is given, this share of the rows.
        test_fraction: the same for the test split, where neither split is given.
        split_seed: of that choice. It is not the run's, so that no seed ever tests on what another trained on.
        bad_rows: "skip" leaves out rows that cannot be used, and counts them in `skipped`; "stop" raises ValueError.
        long_rows: the same for texts beyond max_input_len, which "truncate" cuts off there; the prompt stays whole.
        num_workers: loader processes per rank.
        cache_dir: where hub data sets are kept; by default the folder named by $ZOO_CACHE, else ~/.cache/zoo.
        seed: of the training order; by default the run's own.
    """

    embedded = f"'{OPINIONS}'"
    n_objectives = 1

    def __init__(
        self,
        data: str = OPINIONS,
        label_names: str | list[str] | dict[str, str] | None = None,
        unlabelled: str | None = None,
        prompt: str | None = None,
        lowercase: bool = False,
        tokenizer: str = "bytes",
        bpe_vocab_size: int = 4096,
        text_column: str = "text",
        label_column: str = "label",
        max_input_len: int = 512,
        batch_size: int = 32,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        bad_rows: Literal["stop", "skip"] = "stop",
        long_rows: Literal["stop", "truncate", "skip"] = "stop",
        num_workers: int = 0,
        cache_dir: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, max_input_len, bad_rows, val_fraction, test_fraction)
        self.save_hyperparameters(logger=False)
        if prompt is not None and "{text}" not in prompt:
            raise UserError(f"prompt must say with {{text}} where the text goes, not be {prompt!r}")
        self._placeholders = set(listed(unlabelled))
        if unknown := self._placeholders - {"train", "val", "test"}:
            raise UserError(f"unlabelled names some of train, val, test, with commas between, not {min(unknown)!r}")

    @cached_property
    def labels(self) -> Labels:
        """The classes, as the settings name them or the training rows have them; from then on kept in the settings."""
        given, column = self.hparams["label_names"], self.hparams["label_column"]
        if given is None:
            rows = chain.from_iterable(table.rows for table in self._given.get("train", []))
            labelled = {written(cells[column]) for _, cells in rows if cells.get(column) is not None} - {""}
            if not labelled:
                raise UserError(
                    f"{self.hparams['data']} has no labels in a column {column!r} from which the classes could be "
                    "learnt: set label_column to the one that has them, or label_names to what they are"
                )
            labels = found(labelled)
        else:
            labels = read_labels(given)
        self.hparams["label_names"] = str(labels)
        return labels

    @property
    def label_names(self) -> list[str]:
        """(C,) the names of the classes."""
        return self.labels.names

    @property
    def label_spellings(self) -> list[str]:
        """(C,) each class as the files write it."""
        return self.labels.spellings

    def setup(self, stage: str) -> None:
        for split in self._placeholders & {*SPLITS[stage]} - {"predict"}:
            raise UserError(
                f"the {split} split of {self.hparams['data']} has no true labels (data.unlabelled names it): its rows "
                "can be predicted, but no score can be made of them"
            )
        super().setup(stage)
        for split in {"val", "test"} & {*SPLITS[stage]}:
            targets = self.targets(split)
            if len(targets) > 10 and np.ptp(targets) == 0:
                label = self.labels.spellings[int(targets[0, 0])]
                rank_zero_only(print)(
                    f"zoo: all {len(targets)} labels of the {split} split are {label!r}: if they are placeholders, "
                    f"set data.unlabelled to {split}",
                    file=sys.stderr,
                )

    # ---- where rows come from

    @cached_property
    def _given(self) -> dict[str, list[Table]]:
        if self.hparams["data"] == OPINIONS:
            return {split: [opinions(split)] for split in ROWS}
        return super()._given

    def _table(self, file: Path) -> Table:
        return read_labelled(file, self._bad) if file.suffix.lower() == ".txt" else read_table(file, None, self._bad)

    def _labelled(self, table: Table) -> bool:
        return any(cells.get(self.hparams["label_column"]) not in (None, "") for _, cells in table.rows)

    @cached_property
    def _layout(self) -> Layout:
        text, label = self.hparams["text_column"], self.hparams["label_column"]
        if all(table.columns == ["label", "text"] for table in chain(*self._given.values())):
            text, label = "text", "label"  # lines `label ||| text`, after a table with other columns
        return Layout([text], [label], "text", classes=self.labels.classes)

    def _read_split(self, split: str, need_targets: bool = True) -> Rows:
        named = {split, *(split_named(Path(table.name).name) for table in self._given[split])}
        if named & self._placeholders:
            return self._layout._replace(targets=[]).read(self._given[split], self._bad, need_targets=False)
        return super()._read_split(split, need_targets)

    # ---- tokens

    @property
    def choices(self) -> str:
        """The label names as a sentence lists them."""
        *others, last = self.label_names
        return f"{others[0]} or {last}" if len(others) == 1 else f"{', '.join(others)}, or {last}"

    @property
    def prompts(self) -> tuple[str, str]:
        """What stands before a text, and after it."""
        before, _, after = (self.hparams["prompt"] or "{text}").replace("{choices}", self.choices).partition("{text}")
        return before, after

    @property
    def prompt_parts(self) -> tuple[str, str] | None:
        """The prompt before a text and after it; None without a prompt."""
        return None if self.hparams["prompt"] is None else self.prompts

    def _spelt(self, texts: list[str]) -> list[str]:
        before, after = self.prompts
        return [f"{before}{text.lower() if self.hparams['lowercase'] else text}{after}" for text in texts]

    def _encode(self, split: str) -> TextRows:
        rows, limit = self._rows(split), self.max_input_len
        bos = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        ids = [[*bos, *some] if some else [] for some in self.tokenizer.encode_batch(self._spelt(rows.texts))]
        kept = [i for i in range(len(ids)) if self._fits(rows.places[i], ids[i])]
        if not kept:
            raise UserError(f"no row of the {split} split is left{self._bad.first()}")
        end = len(self.tokenizer.encode(self.prompts[1], bos=False))  # which truncating leaves
        if end >= limit:
            raise UserError(f"the prompt alone has {end} tokens, as many as max_input_len {limit} has: raise that")
        cut = [ids[i] if len(ids[i]) <= limit else ids[i][: limit - end] + ids[i][len(ids[i]) - end :] for i in kept]
        return TextRows([rows.texts[i] for i in kept], cut, rows.targets[kept])
