"""RegressionModule: base data module of texts with numbers, of TextRegression and SyntheticConfigs."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from zoo.datamodules.augment import Augmentation
from zoo.datamodules.preparation import TeacherPlan, plan_copies, plan_teacher
from zoo.datamodules.regression_rows import RegressionRows
from zoo.datamodules.regression_settings import RegressionSettings
from zoo.datamodules.row_module import RowModule
from zoo.datamodules.row_text import list_columns, nearest_column
from zoo.datamodules.rows import TextRows
from zoo.datamodules.sources.table_rows import Table
from zoo.datamodules.unlabelled import unlabelled_files
from zoo.errors import UserError
from zoo.training.text_statistics import TextStatistics, text_statistics
from zoo.training.unlabelled_texts import UnlabelledTexts


class RegressionModule(RowModule):
    """Base data module of texts with numbers. A subclass calls `open_rows` in its constructor."""

    text_arguments: ClassVar[tuple[str, ...]] = ("row_format", "round_digits", "power_tokens")
    column_arguments: ClassVar[tuple[str, ...]] = ("columns", "text_column")
    renamed_arguments: ClassVar[dict[str, str]] = {"digits": "round_digits", "powers": "power_tokens"}

    def open_rows(self, settings: RegressionSettings, generated: Mapping[str, Callable[[str], Table]]) -> None:
        """Open the data; its sizes and rounding become attributes, which models get.

        Args:
            settings: all settings of the rows.
            generated: data sets that need no file: name -> function from a split to its table of "text" and "target".
        """
        self.source = RegressionRows(settings, generated, self.cache / "datasets", self.hparams.update)
        self.reader, self.max_input_len = self.source.reader, settings.max_input_len
        self.round_digits, self.power_tokens = settings.round_digits, settings.power_tokens

    @property
    def n_objectives(self) -> int:
        """K, the number of values to predict for each text."""
        return self.source.n_objectives

    @property
    def target_names(self) -> list[str] | None:
        """The names of several target columns; None for one."""
        return self.source.target_names

    @property
    def n_features(self) -> int:
        """F, the number of features of each text; 0 where they are off."""
        if not self.source.settings.features:
            return 0
        if self.source.n_numbers is None:
            try:
                self.dataset("train")
            except UserError:  # the data may be rows to predict, without targets; `setup` reports any other fault
                self.dataset("predict")
        return self.source.n_numbers or 0

    def statistics(self) -> TextStatistics:
        """Statistics of the training rows as they are given: neither rounded nor tokenized nor copied."""
        rows = self.reader.rows("train")
        layout = self.reader.layout
        return text_statistics(rows.texts, rows.targets, 0 if layout.row_format == "text" else len(layout.columns))

    def row_text(self, cells: Mapping[str, Any]) -> str:
        """The text of a table's row, as the model reads it: what `ExampleInput` needs.

        Args:
            cells: column -> value. One that is missing, None or empty is left out of the text. Columns of the training
                table that are not part of the texts, such as the target's, are not read.

        Raises:
            UserError: all of the row's columns are empty, or the table has no column of a given name.
        """
        layout, tables_by_split = self.reader.layout, self.reader.tables
        known = {
            *layout.columns,
            *(name for group in tables_by_split.values() for table in group for name in table.names),
        }
        for name in cells:
            if name not in known:
                raise UserError(
                    f"the table has no column {name!r}{nearest_column(name, layout.columns)}: name columns as it does, "
                    f"{list_columns(layout.columns)}"
                )
        return layout.text(dict(cells))

    def plan_synthetic_rows(self, most: int, seconds: float) -> TeacherPlan:
        """The teacher and the number of synthetic rows, at most `most`, for which some seconds suffice."""
        source = self.source
        return plan_teacher(source.training_table, most, seconds, self.seed, source.rounded_texts)

    def plan_copies(self, settings: Mapping[str, Any], most: int, seconds: float) -> int:
        """The number of changed copies of each training row, at most `most`, that are made in some seconds.

        Args:
            settings: arguments of the data module that say what is changed; those that are missing are its own.
            most: copies where time does not matter.
            seconds: seconds for all copies.
        """
        s = {**vars(self.source.settings), **settings}
        texts = self.reader.rows("train").texts
        change = Augmentation(s["synonyms"], s["background"], s["number_formats"], s["jitter"], texts)
        return plan_copies(texts, change, most, seconds, self.source.rounded_texts)

    def features(self, split: str) -> np.ndarray | None:
        """(N, F) float32, the numbers in each text; None if they are off."""
        return self.dataset(split).features

    def encode(self, split: str) -> TextRows:
        return self.source.encode(split, self.tokenizer, self.seed)

    def tokenizer_texts(self) -> list[str]:
        """The training and unlabelled texts and the synthetic rows, with rounded numbers."""
        training = self.source.unlabelled or self.reader.rows("train").texts
        return self.source.rounded_texts(training + self.source.synthetic(self.seed)[0])

    @property
    def unlabelled_texts(self) -> UnlabelledTexts | None:
        """The texts on which a model pretrains; None unless the option `unlabelled` is set."""
        settings = self.source.settings
        if settings.unlabelled is None:
            return None

        def read() -> list[list[int]]:
            return self.tokenizer.encode_batch(self.source.rounded_texts(self.source.unlabelled))

        return UnlabelledTexts(settings.unlabelled, read, settings.batch_size)

    def setup(self, stage: str) -> None:
        """Check, in addition, that the unlabelled texts exist."""
        super().setup(stage)
        if stage == "fit" and (data := self.source.settings.unlabelled) is not None:
            unlabelled_files(data)
