"""Made-up training configurations and the score that a formula gives them: text in, number out, the answer known.

    score = 0.5 / lr + 0.3 batch_size + 0.2 layers - 100 dropout + N(0, 5)

A text is `{"lr": 0.0123, "batch_size": 32, "layers": 4, "dropout": 0.25}`. Most scores lie between -30 and 100, but
0.5 / lr reaches 5,000: one row in a hundred decides every squared error.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from random import Random
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from zoo.datamodules.row_text import Rows
from zoo.datamodules.text_regression import TextRegression
from zoo.errors import UserError
from zoo.training.random_streams import derive

SYNTHETIC = "synthetic"
TestOn = Literal["same", "lr", "batch_size", "layers", "dropout", "order"]


class Config(NamedTuple):
    """What is drawn, in the order in which it is drawn and written."""

    lr: float
    batch_size: int
    layers: int
    dropout: float

    @property
    def score(self) -> float:
        """The formula without its noise."""
        return 0.5 / self.lr + 0.3 * self.batch_size + 0.2 * self.layers - 100 * self.dropout


class Ranges(NamedTuple):
    """From where to where, both included, or between what a configuration is drawn."""

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


# Beyond the training rows in one thing: its range, or the order of the four in the text.
ELSEWHERE: dict[str, Ranges] = {
    "lr": Ranges(lr=(0.1001, 0.2)),
    "batch_size": Ranges(batch_size=(8, 24, 48, 96, 256)),
    "layers": Ranges(layers=(11, 15)),
    "dropout": Ranges(dropout=(0.51, 0.7)),
    "order": Ranges(),
}


class SyntheticConfigs(TextRegression):
    """Configurations as JSON, each with its score; the last fifth of the rows are for tests. No download.

    `--data_dir` gives configurations of your own in their place: a table with the columns lr, batch_size, layers and
    dropout, and, but for predictions, score; or any other that `TextRegression` reads.

    Args:
        n_rows: how many are drawn; a tenth of those for training are for validation.
        rows_seed: of the draw, by Python's own generator. It is not the run's, so that every run on the same rows is
            tested on the same.
        test_on: "same", or test rows from outside what is trained on: "lr" above 0.1, "batch_size" of other sizes,
            "layers" above 10, "dropout" above 0.5, or the four in another "order".
        data: "synthetic", or what `TextRegression` takes.
        tokenizer, target_columns, row_format, max_input_len, **options: as in `TextRegression`.
    """

    def __init__(
        self,
        n_rows: int = 2000,
        rows_seed: int = 0,
        test_on: TestOn = "same",
        data: str = SYNTHETIC,
        tokenizer: str = "characters",
        target_columns: str = "score",
        row_format: Literal["text", "key_value", "json", "values"] = "json",
        max_input_len: int = 128,
        **options: Any,
    ) -> None:
        super().__init__(
            data=data, tokenizer=tokenizer, target_columns=target_columns, row_format=row_format,
            max_input_len=max_input_len, **options,
        )  # fmt: skip
        if n_rows < 20:
            raise UserError(f"n_rows must be at least 20, for every split to have some, not {n_rows}")
        if test_on not in get_args(TestOn):
            raise UserError(f"test_on is one of {', '.join(get_args(TestOn))}, not {test_on!r}")

    def rows(self, split: str) -> Rows:
        if self.hparams["data"] != SYNTHETIC:
            return super().rows(split)
        self.hparams["columns"] = ",".join(Config._fields)  # in which a checkpoint will read rows of other data
        drawn = self._drawn[split]
        texts = [json.dumps(self._written(split, config)) for config, _ in drawn]
        places = [f"{split} configuration {i}" for i in range(1, len(texts) + 1)]
        return Rows(texts, np.array([[score] for _, score in drawn]), places, places)

    def configs(self, split: str) -> np.ndarray:
        """(N, 4) float64: what a model of numbers, rather than text, is given."""
        return np.array([config for config, _ in self._drawn[split]], dtype=np.float64)

    def oracle(self, split: str) -> np.ndarray:
        """(N, 1) float64: the scores without their noise, which no model can beat."""
        return np.array([[config.score] for config, _ in self._drawn[split]])

    @cached_property
    def _drawn(self) -> dict[str, list[tuple[Config, float]]]:
        n, seed, test_on = (self.hparams[name] for name in ("n_rows", "rows_seed", "test_on"))
        random = Random(seed)
        rows = [Ranges().draw(random) for _ in range(n)]
        tested, validated = 4 * n // 5, 18 * n // 25
        test = rows[tested:]
        if test_on in ELSEWHERE:
            random = Random(derive(seed, "test_on", test_on))
            test = [ELSEWHERE[test_on].draw(random) for _ in test]
        return {"train": rows[:validated], "val": rows[validated:tested], "test": test, "predict": test}

    def _written(self, split: str, config: Config) -> dict[str, float]:
        """Name to number, in the order of the text."""
        elsewhere = self.hparams["test_on"] == "order" and split in ("test", "predict")
        return dict(sorted(config._asdict().items())) if elsewhere else config._asdict()
