"""RegressionRows: texts with numbers from a RowReader, tokenized, with features, changed copies and synthetic rows."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np
import torch

from zoo.console.argument_names import print_notice
from zoo.datamodules.augment import Augmentation
from zoo.datamodules.column_warnings import index_column, warn_of_columns
from zoo.datamodules.preparation import TrainingTable
from zoo.datamodules.regression_settings import RegressionSettings
from zoo.datamodules.row_data import RowReader, Tables
from zoo.datamodules.row_text import RowFormat, RowLayout, list_columns, numbers_in, parse_columns
from zoo.datamodules.rows import TextRows
from zoo.datamodules.sources import tables
from zoo.datamodules.sources.nested_cells import columns_without
from zoo.datamodules.sources.table_rows import BadRows, Table
from zoo.datamodules.sources.tables import read_table
from zoo.datamodules.teacher import Teacher
from zoo.datamodules.unlabelled import read_unlabelled
from zoo.errors import UserError
from zoo.tokenizers import Tokenizer
from zoo.tokenizers.numerals import rounded
from zoo.tokenizers.unknown_words import warn_of_unknown_words
from zoo.training.random_streams import derive, stream

YAML_TEXT, YAML_TARGET = "news", "change_rate"  # default columns of YAML files


class RegressionRows:
    """Datasets of texts with numbers: rows, layout, rounding, features and augmentation.

    Args:
        settings: where the rows come from and how they become texts.
        generated: data sets that need no file: name -> function from a split to a table of columns "text", "target".
        cache_dir: folder for hub data sets.
        record: called with the settings that the data decides (columns and format of texts), for checkpoints.
    """

    def __init__(
        self,
        settings: RegressionSettings,
        generated: Mapping[str, Callable[[str], Table]],
        cache_dir: Path,
        record: Callable[[dict[str, object]], None],
    ) -> None:
        self.settings, self._record, self._cache_dir = settings, record, cache_dir
        self.n_numbers: int | None = None  # F, the number of features of each text, once the first is read
        self._has_index = False  # whether an input only counts the rows
        self._teachers: dict[int, Teacher] = {}  # by seed
        self._synthetic: dict[int, tuple[list[str], np.ndarray]] = {}  # by seed
        self.reader = RowReader(
            settings,
            self._choose_layout,
            self._read_file,
            settings.target_columns or YAML_TARGET,
            cache_dir,
            generated,
        )

    @property
    def n_objectives(self) -> int:
        """K, the number of target columns."""
        if len(parse_columns(self.settings.target_columns)) < 2:
            return 1
        return len(self.reader.layout.targets) or 1

    @property
    def target_names(self) -> list[str] | None:
        """The names of several target columns; None for one."""
        return self.reader.layout.targets if self.n_objectives > 1 else None

    def rounded_texts(self, texts: list[str]) -> list[str]:
        """The texts as the tokenizer reads them: with rounded numbers."""
        digits, powers = self.settings.round_digits, self.settings.power_tokens
        return [rounded(text, digits, powers) for text in texts] if digits else texts

    def encode(self, split: str, tokenizer: Tokenizer, seed: int) -> TextRows:
        """The dataset of a split; the training split is followed by its augmented copies and by synthetic rows."""
        # Tokens and features of all rows, of which only usable rows stay.
        rows, limit = self.reader.rows(split), self.settings.max_input_len
        if split == "train":
            cells, columns = self.training_table.cells, self.reader.layout.columns
            warn_of_columns(cells, columns, rows.targets, self.reader.layout.targets, self.settings)
            if self._has_index:
                print_notice("a column without a name counts the rows, and is an input: leave it out of --data.columns")
        if split == "predict":
            self._print_guessed_columns()
        ids = tokenizer.encode_batch(self.rounded_texts(rows.texts))
        warn_of_unknown_words(split, rows.texts, ids, tokenizer, self.rounded_texts)
        features = [numbers_in(text) for text in rows.texts] if self.settings.features else None
        numbers: Sequence[list[float] | None] = features or [None] * len(ids)
        used = [i for i in range(len(ids)) if self._is_usable(rows.places[i], ids[i], numbers[i])]
        if not used:
            raise UserError(f"no row of the {split} split is left{self.reader.bad_rows.first()}")
        texts, ids = [rows.texts[i] for i in used], [tokenizer.truncated(ids[i], limit) for i in used]
        # Copies of texts and targets are changed; features come from the original texts.
        copies = self.settings.augment_copies if split == "train" else 0
        all_texts, all_ids = self._add_copies(texts, ids, copies, tokenizer, seed)
        targets = self._add_target_copies(rows.targets[used], copies, seed)
        all_numbers = [numbers[i] for i in used] * (1 + copies)
        # Synthetic rows of the training split.
        if split == "train" and self.settings.synthetic_rows:
            new_texts, labels = self.synthetic(seed)
            new_texts, new_ids, new_used, new_numbers = self.encode_texts(new_texts, tokenizer)
            all_texts, all_ids, all_numbers = all_texts + new_texts, all_ids + new_ids, all_numbers + new_numbers
            targets = np.concatenate([targets, labels[new_used]])
        all_features = np.array(all_numbers, dtype=np.float32) if features is not None else None
        positions = None if split == "train" or rows.positions is None else rows.positions[used]
        return TextRows(all_texts, all_ids, targets, all_features, len(used), positions)

    def teacher(self, seed: int) -> Teacher:
        """The models that label synthetic rows, fitted to the training rows.

        Raises:
            UserError: there are too few rows, or no columns of numbers or categories.
        """
        if seed not in self._teachers:
            self._teachers[seed] = self.training_table.teacher(seed, self.settings.teacher)
        return self._teachers[seed]

    @cached_property
    def training_table(self) -> TrainingTable:
        """The cells of which the texts of the training rows were made."""
        rows = self.reader.rows("train")
        cells = {place: cells for table in self.reader.tables["train"] for place, cells in table.rows}
        return TrainingTable([cells[place] for place in rows.places], self.reader.layout, rows.targets, rows.groups)

    def synthetic(self, seed: int) -> tuple[list[str], np.ndarray]:
        """(N,) texts of synthetic training rows and their targets (N, K); none unless `synthetic_rows` is set."""
        n_rows = self.settings.synthetic_rows
        if not n_rows:
            return [], np.empty((0, self.n_objectives))
        if seed not in self._synthetic:
            teacher = self.teacher(seed)
            print_notice(f"{n_rows:,} synthetic rows are labelled by {teacher}")
            cells, targets = teacher.draw(n_rows, self.settings.synthetic_noise)
            self._synthetic[seed] = [self.reader.layout.text(row) for row in cells], targets
        return self._synthetic[seed]

    @cached_property
    def unlabelled(self) -> list[str]:
        """The distinct texts that `unlabelled` names, and those of the training rows; none unless it is set."""
        if (data := self.settings.unlabelled) is None:
            return []
        bad = self.reader.bad_rows
        texts = read_unlabelled(data, lambda: self.reader.layout, self._read_file, bad, self._cache_dir)
        return list(dict.fromkeys(texts + self.reader.rows("train").texts))

    def encode_texts(
        self, texts: list[str], tokenizer: Tokenizer
    ) -> tuple[list[str], list[list[int]], list[int], list[list[float] | None]]:
        """Of synthetic texts those that can be used, their tokens, their places among all, and their features."""
        limit, is_cut = self.settings.max_input_len, self.settings.long_rows == "truncate"
        ids = tokenizer.encode_batch(self.rounded_texts(texts))
        numbers: list[list[float] | None] = [numbers_in(t) if self.settings.features else None for t in texts]
        used = [
            i
            for i, (tokens, values) in enumerate(zip(ids, numbers, strict=True))
            if tokens and (is_cut or len(tokens) <= limit) and (values is None or len(values) == self.n_numbers)
        ]
        cut = [tokenizer.truncated(ids[i], limit) for i in used]
        return [texts[i] for i in used], cut, used, [numbers[i] for i in used]

    # ---- private

    def _print_guessed_columns(self) -> None:
        """Print the columns of the texts where no option names them: the checkpoint is of a model of examples."""
        layout, table = self.reader.layout, self.reader.tables[self.reader.predicted_split][0]
        is_given = self.settings.columns or self.settings.text_column or {*layout.targets} & {*table.names}
        if not is_given and len(layout.columns) > 1:
            print_notice(
                f"{table.name}: the texts are made of all columns, {list_columns(layout.columns)}: if one is the "
                "target, name it with --data.target_columns; others are left out by --data.columns"
            )

    def _read_file(self, file: Path, bad: BadRows) -> Table:
        return read_table(file, parse_columns(self.settings.column_names) or None, bad, self.settings.separator)

    def _choose_layout(self, given: Tables) -> RowLayout:
        """Roles of the columns; those that the settings leave open follow from the first split."""
        if self.reader.is_generated:
            return RowLayout(["text"], ["target"], "text")
        s, group = self.settings, next(iter(given.values()))
        # Names of all columns: those of the first file's header, or without headers all keys in any row.
        table = group[0]
        names = table.names if table.columns is not None else list(dict.fromkeys(n for t in group for n in t.names))
        is_yaml = table.columns is None and Path(table.name).suffix.lower() in tables.YAML
        targets = parse_columns(s.target_columns, names) or ([YAML_TARGET] if is_yaml else [])
        [group_column] = parse_columns([s.group_column], names) if s.group_column else [None]
        # Input columns: as given, else all others; of YAML files with a default text column only that.
        # Targets and groups inside of mappings are no part of the text either.
        others = [*targets, *([group_column] if group_column else [])]
        rows = [cells for t in group for _, cells in t.rows]
        inputs = parse_columns(s.columns, names) or columns_without(names, rows, others)
        self._has_index = not s.columns and s.text_column is None and index_column(table, inputs) is not None
        if s.text_column is not None:
            inputs = parse_columns([s.text_column], names)
        elif is_yaml and YAML_TEXT in names and not s.columns and s.row_format in (None, "text"):
            inputs = [YAML_TEXT]
        is_text = len(inputs) == 1 and (
            s.text_column is not None or not any(isinstance(cells.get(inputs[0]), dict) for cells in rows)
        )
        row_format: RowFormat = s.row_format or ("text" if is_text else "key_value")
        if row_format == "text" and len(inputs) != 1:
            raise UserError(
                f"row_format text reads one column: set --data.text_column to one of {list_columns(inputs)}"
            )
        if not inputs:
            raise UserError(f"{table.name} has no column for the text: its columns are {list_columns(names)}")
        # Other data, read from a checkpoint's settings, must become texts in the same way.
        if row_format == "text":
            self._record({"text_column": inputs[0], "columns": None})
        else:
            self._record({"columns": inputs, "row_format": row_format})
        if s.target_columns:
            self._record({"target_columns": targets})
        return RowLayout(inputs, targets, row_format, group_column)

    def _is_usable(self, place: str, ids: list[int], features: list[float] | None) -> bool:
        """Whether a row can be used; all rows of all splits must have as many features as the first."""
        # Features must be finite in fp32 and equally many in all rows.
        bad = self.reader.bad_rows
        if not self.reader.has_valid_length(place, len(ids)):
            return False
        if features and max(map(abs, features)) > float(np.finfo(np.float32).max):
            bad.refuse(place, "a number in its text is too large for a feature")
            return False
        if features is not None:
            self.n_numbers = len(features) if self.n_numbers is None else self.n_numbers
            if len(features) != self.n_numbers:
                bad.refuse(place, f"its text has {len(features)} numbers, the first row's {self.n_numbers}")
                return False
        return True

    def _add_copies(
        self, texts: list[str], ids: list[list[int]], copies: int, tokenizer: Tokenizer, seed: int
    ) -> tuple[list[str], list[list[int]]]:
        """All rows, then the first copies of all, and so on; a copy that would be too long is left unchanged."""
        s = self.settings
        # Each copy of each row has its own random stream.
        change = Augmentation(s.synonyms, s.background, s.number_formats, s.jitter, texts)
        all_texts, all_ids = [*texts], [*ids]
        for copy in range(copies):
            # Change every text, and tokenize the changed texts as the original ones.
            new = [change(text, Random(derive(seed, "augment", row, copy))) for row, text in enumerate(texts)]
            new_ids = tokenizer.encode_batch(self.rounded_texts(new))
            for row, tokens in enumerate(new_ids):
                if len(tokens) > s.max_input_len:
                    new[row], new_ids[row] = texts[row], ids[row]
            all_texts += new
            all_ids += new_ids
        return all_texts, all_ids

    def _add_target_copies(self, targets: np.ndarray, copies: int, seed: int) -> np.ndarray:
        """(N (1 + copies), K): the targets (N, K) of all rows, then those of the first copies, and so on."""
        # Multiply by exp(N(0, target_jitter^2)), which keeps signs.
        generator = stream(seed, "target jitter")
        noise = torch.randn(copies, *targets.shape, generator=generator, dtype=torch.float64, device="cpu")
        with np.errstate(over="ignore"):
            jittered = targets * np.exp(self.settings.target_jitter * noise.numpy())
        jittered = np.where(np.isfinite(jittered), jittered, targets)  # beyond the range of floats: unchanged
        return np.concatenate([targets, jittered.reshape(-1, targets.shape[1])])
