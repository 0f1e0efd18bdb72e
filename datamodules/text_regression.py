"""TextRegression: texts with numbers to predict, from tables, hub data sets or folders of YAML files."""

from dataclasses import asdict
from functools import cached_property
from typing import Any

import numpy as np

from zoo.datamodules.calibration_rows import calibration_rows
from zoo.datamodules.regression_module import RegressionModule
from zoo.datamodules.regression_settings import RegressionSettings
from zoo.datamodules.resumable import EvalLoader
from zoo.datamodules.sources.table_rows import Table
from zoo.training.batches import Row

INTEGERS = "integers"


def integers(split: str) -> Table:
    """The identity y = x on integers in [-3000, 3000], upstream RegressLM's issue 57: 2,560, 640 and 2,560 rows."""
    part = {"train": slice(0, 2560), "val": slice(2560, 3200), "test": slice(3200, 5760)}[split]
    x = np.random.default_rng(42).permutation(np.arange(-3000, 3001))[part].tolist()
    return Table(INTEGERS, ["text", "target"], [(f"X1: {v}", {"text": f"X1: {v}", "target": v}) for v in x])


class TextRegression(RegressionModule):
    """Batches of `zoo.training.batches.TextBatch`: texts and the numbers to predict from them.

    In training, the texts of a batch have similar lengths. "predict" has the files of a folder that hold no target and
    whose names have the word test or predict; without such files, all rows of data without splits; else the test
    split, or the validation split without one.

    Args:
        data: "integers", the identity on [-3000, 3000] (no download); a CSV, TSV, JSON-lines, Parquet or YAML file; a
            folder of such files; or a hub data set, "name" or "name:config". Splits are given by the names of a
            folder's files (train, valid, test) or by the hub; a missing one is cut from the training rows at random.
            A `.txt` file is a TSV in which quotes are ordinary characters.
        tokenizer: "bytes"; "characters"; "bpe" or "words" (split at white space), trained on the training texts; or a
            path that `load_tokenizer` takes.
        **settings: the fields of `RegressionSettings`.
    """

    def __init__(self, data: str = INTEGERS, tokenizer: str = "bytes", **settings: Any) -> None:
        options = RegressionSettings(data=data, tokenizer=tokenizer, **settings)
        super().__init__(batch_size=options.batch_size, num_workers=options.num_workers, seed=options.seed)
        self.save_hyperparameters(asdict(options), logger=False)  # models log settings of the same names
        self.open_rows(options, {INTEGERS: integers})

    @cached_property
    def calibration_rows(self) -> list[Row]:
        """Rows with drawn targets, on which a model calibrates itself; none: the validation rows are to be used."""
        return calibration_rows(self.source, self.dataset("val"), self.tokenizer, self.seed)

    def val_dataloader(self) -> EvalLoader:
        loader = super().val_dataloader()
        if self.trainer is not None and self.trainer.state.fn == "fit":
            rank, ranks = self.rank_and_ranks()
            loader.calibration_rows = self.calibration_rows[rank::ranks]
        return loader
