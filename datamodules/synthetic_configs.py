"""SyntheticConfigs: randomly drawn training configurations as JSON, with the score that a formula gives them.

    score = 0.5 / lr + 0.3 batch_size + 0.2 layers - 100 dropout + N(0, 5)

A text is `{"lr": 0.0123, "batch_size": 32, "layers": 4, "dropout": 0.25}`. Most scores are between -30 and 100, but
0.5 / lr reaches 5,000: one row in a hundred dominates every squared error.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from random import Random
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from zoo.datamodules.regression_module import RegressionModule
from zoo.datamodules.regression_settings import RegressionSettings
from zoo.datamodules.row_text import RowFormat
from zoo.datamodules.sources.table_rows import Table
from zoo.datamodules.text_regression import INTEGERS, integers
from zoo.errors import UserError, check_choice
from zoo.training.random_streams import derive

SYNTHETIC = "synthetic"
TestOn = Literal["same", "lr", "batch_size", "layers", "dropout", "order"]


class Config(NamedTuple):
    """A training configuration, its values in the order in which they are drawn and written."""

    lr: float
    batch_size: int
    layers: int
    dropout: float

    @property
    def score(self) -> float:
        """The formula without its noise."""
        return 0.5 / self.lr + 0.3 * self.batch_size + 0.2 * self.layers - 100 * self.dropout


class Ranges(NamedTuple):
    """Ranges, ends included, and choices from which a configuration is drawn."""

    lr: tuple[float, float] = (0.0001, 0.1)
    batch_size: Sequence[int] = (16, 32, 64, 128)
    layers: tuple[int, int] = (1, 10)
    dropout: tuple[float, float] = (0.0, 0.5)

    def draw(self, random: Random) -> tuple[Config, float]:
        """A configuration and its noisy score."""
        lr = round(random.uniform(*self.lr), 4)
        batch_size, layers = random.choice(self.batch_size), random.randint(*self.layers)
        config = Config(lr, batch_size, layers, round(random.uniform(*self.dropout), 2))
        return config, config.score + random.gauss(0, 5)


# Test rows that differ from the training rows in one respect: a range, or the order of the values in the text.
ELSEWHERE: dict[str, Ranges] = {
    "lr": Ranges(lr=(0.1001, 0.2)),
    "batch_size": Ranges(batch_size=(8, 24, 48, 96, 256)),
    "layers": Ranges(layers=(11, 15)),
    "dropout": Ranges(dropout=(0.51, 0.7)),
    "order": Ranges(),
}


class SyntheticRows:
    """Generated data set of configurations and scores: calling it with a split gives the table of its texts.

    Args:
        n_rows: number of rows: 72 % for training, 8 % for validation, 20 % for tests.
        seed: seed of the draw, by Python's own generator.
        test_on: see `SyntheticConfigs`.
    """

    def __init__(self, n_rows: int, seed: int, test_on: TestOn) -> None:
        self.n_rows, self.seed, self.test_on = n_rows, seed, test_on

    @cached_property
    def rows(self) -> dict[str, list[tuple[Config, float]]]:
        """(configuration, noisy score) of every row of each split."""
        random = Random(self.seed)
        rows = [Ranges().draw(random) for _ in range(self.n_rows)]
        train_end, val_end = 18 * self.n_rows // 25, 4 * self.n_rows // 5
        test = rows[val_end:]
        if self.test_on in ELSEWHERE:
            random = Random(derive(self.seed, "test_on", self.test_on))
            test = [ELSEWHERE[self.test_on].draw(random) for _ in test]
        return {"train": rows[:train_end], "val": rows[train_end:val_end], "test": test, "predict": test}

    def __call__(self, split: str) -> Table:
        sorts = self.test_on == "order" and split == "test"
        rows = []
        for i, (config, score) in enumerate(self.rows[split], start=1):
            values = config._asdict()
            text = json.dumps(dict(sorted(values.items())) if sorts else values)
            rows.append((f"{split} configuration {i}", {"text": text, "target": score}))
        return Table(SYNTHETIC, ["text", "target"], rows)


@dataclass
class SyntheticSettings(RegressionSettings):
    """Settings of `SyntheticConfigs`: the same as of `TextRegression`, with other defaults."""

    data: str = SYNTHETIC
    tokenizer: str = "characters"
    target_columns: list[str] | str | None = "score"
    row_format: RowFormat | None = "json"
    max_input_len: int = 128


class SyntheticConfigs(RegressionModule):
    """Configurations as JSON, each with its score; no download.

    `--data_dir` replaces them by your configurations: a table with the columns lr, batch_size, layers, dropout
    and, except for predictions, score; or any other table that `TextRegression` reads.

    Args:
        n_rows: number of rows drawn, at least 20: 72 % for training, 8 % for validation, 20 % for tests.
        rows_seed: seed of the draw. It is not the run's seed, so all runs on the same rows are tested on the same rows.
        test_on: "same" tests on rows drawn as the training rows are. Other values test on rows outside the training
            ranges: "lr" above 0.1, "batch_size" of other sizes, "layers" above 10, "dropout" above 0.5; or with the
            four values in alphabetical "order".
        **settings: the fields of `SyntheticSettings`.
    """

    changeable_arguments = (*RegressionModule.changeable_arguments, "test_on")

    def __init__(self, n_rows: int = 2000, rows_seed: int = 0, test_on: TestOn = "same", **settings: Any) -> None:
        options = SyntheticSettings(**settings)
        super().__init__(batch_size=options.batch_size, num_workers=options.num_workers, seed=options.seed)
        if n_rows < 20:
            raise UserError(f"--data.n_rows must be at least 20, so that every split has rows, not {n_rows}")
        check_choice("--data.test_on", test_on, get_args(TestOn))
        own = {"n_rows": n_rows, "rows_seed": rows_seed, "test_on": test_on}
        self.save_hyperparameters(own | asdict(options), logger=False)  # models log settings of the same names
        if options.data == SYNTHETIC:
            self.hparams["columns"] = list(Config._fields)  # in this order a checkpoint reads rows of other data
        self.synthetic = SyntheticRows(n_rows, rows_seed, test_on)
        self.open_rows(options, {SYNTHETIC: self.synthetic, INTEGERS: integers})

    def configs(self, split: str) -> np.ndarray:
        """(N, 4) float64: the values of each configuration, for models of numbers."""
        return np.array([config for config, _ in self.synthetic.rows[split]], dtype=np.float64)

    def oracle(self, split: str) -> np.ndarray:
        """(N, 1) float64: the scores without noise, the best possible predictions."""
        return np.array([[config.score] for config, _ in self.synthetic.rows[split]])
