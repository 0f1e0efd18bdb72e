"""Reviews: texts with class labels, from `label ||| text` files, tables or hub data sets, for a classifier."""

from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo.console.argument_names import print_notice
from zoo.datamodules.label_columns import LABEL, TEXT, find_columns
from zoo.datamodules.opinions import OPINIONS, opinions
from zoo.datamodules.row_data import RowReader, Tables
from zoo.datamodules.row_module import RowModule
from zoo.datamodules.row_settings import RowSettings
from zoo.datamodules.row_text import RowLayout, parse_columns
from zoo.datamodules.rows import TextRows
from zoo.datamodules.sources.labels import Labels, label_text, labels_of_rows, read_labels
from zoo.datamodules.sources.table_rows import BadRows, Table
from zoo.datamodules.sources.tables import read_labelled, read_table
from zoo.datamodules.text_data import SPLITS
from zoo.errors import UserError
from zoo.tokenizers.unknown_words import warn_of_unknown_words
from zoo.training.text_statistics import TextStatistics, text_statistics


@dataclass
class ReviewSettings(RowSettings):
    """Settings of `Reviews`.

    Args:
        label_names: see `Reviews`.
        unlabelled: splits (train, val, test), separated by commas, whose labels are placeholders: the labels are not
            read, and no score is computed on them; default: none.
        prompt: template of what a model reads: {text}, which occurs once, is replaced by the text, {choices} by the
            list of class names; default: the text alone.
        lowercase: convert texts to lower case before tokenization.
        text_column: column of the texts in a table; default: "text", or the other one of two columns.
        label_column: column of the labels in a table; default: "label", or the other one of two columns. Without these
            names, that of the two columns which has fewer different values.
        stratified: cut validation and test splits that have the same share of each class as the training rows.
    """

    data: str = OPINIONS
    label_names: str | list[str] | dict[str, str] | None = None
    unlabelled: str | None = None
    prompt: str | None = None
    lowercase: bool = False
    text_column: str | None = None
    label_column: str | None = None
    max_input_len: int = 512
    stratified: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is not None and self.prompt.count("{text}") != 1:
            raise UserError(
                f"--data.prompt must contain {{text}}, which the text replaces, once, not be {self.prompt!r}"
            )
        if unknown := set(parse_columns(self.unlabelled)) - {"train", "val", "test"}:
            raise UserError(
                f"--data.unlabelled must name some of train, val, test, separated by commas, not {min(unknown)!r}"
            )


class Reviews(RowModule):
    """Batches of `zoo.training.batches.TextBatch`, each target the number of a class.

    In training, the texts of a batch have similar lengths. Each text begins with the tokenizer's BOS token, if it has
    one. "predict" has all rows of data without splits, else the test split, or the validation split without one.

    Args:
        data: "opinions", generated texts (no download); a file or a folder: `.txt` files have lines `label ||| text`,
            the format of CMU's minllama course; CSV, TSV, JSON lines and Parquet have columns. `reviews/sst` means all
            files whose names begin so. Or a hub data set, "name" or "name:config". Splits are given by the names of
            files (train, dev, test) or by the hub; a missing one is cut from the training rows at random.
        label_names: names of the labels 0, 1, ..., a list or separated by commas; or a mapping {label: name}, in which
            several labels may share a name; or the path of a JSON file with such a list or mapping. Default: the
            labels of the training rows are their own names. The setting is stored as JSON.
        **settings: the fields of `ReviewSettings`.
    """

    text_arguments = ("lowercase",)
    token_arguments = ("prompt",)
    n_objectives = 1

    def __init__(
        self,
        data: str = OPINIONS,
        label_names: str | list[str] | dict[str, str] | None = None,
        **settings: Any,
    ) -> None:
        options = ReviewSettings(data=data, label_names=label_names, **settings)
        super().__init__(batch_size=options.batch_size, num_workers=options.num_workers, seed=options.seed)
        self.save_hyperparameters(asdict(options), logger=False)
        self.settings, self.max_input_len = options, options.max_input_len
        self.unlabelled = frozenset(parse_columns(options.unlabelled))
        # Rows come from files, from the hub, or from the generated opinions.
        self._names = {"text_column": options.text_column or TEXT, "label_column": options.label_column or LABEL}
        self.reader = RowReader(
            options,
            self._choose_layout,
            self._read_file,
            self._label_columns,
            self.cache / "datasets",
            {OPINIONS: partial(opinions, **self._names)},
            self.unlabelled,
            options.stratified,
        )

    # ---- classes

    @cached_property
    def labels(self) -> Labels:
        """The classes: from label_names, or the labels of the training rows. They are stored in the settings."""
        given = self.settings.label_names
        # Collect the labels of all training rows.
        if given is None:
            labels, tables = set(), self.reader.tables
            column = self._find_columns(tables)[1]
            for table in tables.get("train", []):
                [name] = parse_columns([column], table.names)
                cells = [cells.get(name) for _, cells in table.rows]
                labels |= {c.strip() if isinstance(c, str) else label_text(c) for c in cells if _is_label(c)}
            if not labels:
                raise UserError(
                    f"{self.settings.data} has no labels in a column {column!r} from which to derive the classes: set "
                    "--data.label_column to the column of the labels, or --data.label_names to the classes"
                )
            classes = labels_of_rows(labels)
        else:
            classes = read_labels(given)
        # Store the classes, so that a checkpoint can be used with other data.
        self.hparams["label_names"] = str(classes)
        return classes

    @property
    def label_names(self) -> list[str]:
        """(C,) the names of the classes."""
        return self.labels.names

    @property
    def label_spellings(self) -> list[str]:
        """(C,) each class as the files spell it."""
        return self.labels.spellings

    @property
    def choices(self) -> str:
        """The names of the classes as a list in a sentence."""
        *others, last = self.label_names
        return f"{others[0]} or {last}" if len(others) == 1 else f"{', '.join(others)}, or {last}"

    @property
    def prompt_parts(self) -> tuple[str, str] | None:
        """The prompt before a text, and after it; None without a prompt."""
        if self.settings.prompt is None:
            return None
        # The template with the classes filled in, cut at the place of the text.
        before, _, after = self.settings.prompt.replace("{choices}", self.choices).partition("{text}")
        return before, after

    # ---- tables

    def _read_file(self, file: Path, bad: BadRows) -> Table:
        if file.suffix.lower() == ".txt":
            return read_labelled(file, bad, self._names["label_column"], self._names["text_column"])
        return read_table(file, None, bad, self.settings.separator)

    def _find_columns(self, tables: Tables) -> tuple[str, str]:
        """The columns of the texts and of the labels. They are stored in the settings."""
        text, label = find_columns(tables, self.settings.text_column, self.settings.label_column)
        self.hparams.update(text_column=text, label_column=label)  # a checkpoint can then be used with other data
        return text, label

    def _label_columns(self, tables: Tables) -> list[str]:
        return [self._find_columns(tables)[1]]

    def _choose_layout(self, tables: Tables) -> RowLayout:
        names = next(iter(tables.values()))[0].names
        text, label = (parse_columns([column], names) for column in self._find_columns(tables))
        return RowLayout(text, label, "text", classes=self.labels.classes)

    def statistics(self) -> TextStatistics:
        """Statistics of the training rows; their targets are the numbers of the classes."""
        rows = self.reader.rows("train")
        return text_statistics(rows.texts, rows.targets)

    def training_rows(self) -> tuple[list[str], np.ndarray]:
        """The texts of the training rows as they are given, and the numbers of their classes (N,)."""
        rows = self.reader.rows("train")
        return rows.texts, rows.targets[:, 0]

    # ---- datasets

    def setup(self, stage: str) -> None:
        """Read and check the splits of a stage. Refuse to score placeholders; warn of labels that are all equal."""
        # A score on placeholders would be meaningless.
        for split in self.unlabelled & {*SPLITS[stage]}:
            raise UserError(
                f"the {split} split of {self.settings.data} has placeholders for labels (--data.unlabelled names it): "
                "its rows can be predicted but not scored"
            )
        super().setup(stage)
        for split in {"val", "test"} & {*SPLITS[stage]}:
            # Labels that are all equal are probably placeholders.
            targets = self.targets(split)
            if len(targets) > 10 and np.ptp(targets) == 0:
                label = self.label_spellings[int(targets[0, 0])]
                print_notice(
                    f"all {len(targets)} labels of the {split} split are {label!r}: if they are placeholders, "
                    f"set --data.unlabelled {split}",
                )

    def tokenizer_texts(self) -> list[str]:
        return self._prompted_texts(self.reader.rows("train").texts)

    def _prompted_texts(self, texts: list[str]) -> list[str]:
        """The texts as the tokenizer reads them."""
        before, after = self.prompt_parts or ("", "")
        return [f"{before}{text.lower() if self.settings.lowercase else text}{after}" for text in texts]

    def encode(self, split: str) -> TextRows:
        # Encode all texts with BOS, and leave out rows that cannot be used.
        rows, limit = self.reader.rows(split), self.max_input_len
        bos = self.tokenizer.leading_ids
        # Empty texts stay empty, without BOS, so that the next step refuses them.
        encoded = self.tokenizer.encode_batch(self._prompted_texts(rows.texts))
        warn_of_unknown_words(split, rows.texts, encoded, self.tokenizer, self._prompted_texts)
        ids = [[*bos, *tokens] if tokens else [] for tokens in encoded]
        used = [i for i in range(len(ids)) if self.reader.has_valid_length(rows.places[i], len(ids[i]))]
        if not used:
            raise UserError(f"no row of the {split} split is left{self.reader.bad_rows.first()}")
        # Truncation removes the end of the text but keeps the prompt after it.
        end = len(self.tokenizer.encode((self.prompt_parts or ("", ""))[1], bos=False))
        if end >= limit:
            raise UserError(
                f"the prompt after the text has {end} tokens, which leaves none for a text: set "
                f"--data.max_input_len above {end}, not {limit}"
            )
        cut = [ids[i] if len(ids[i]) <= limit else ids[i][: limit - end] + ids[i][len(ids[i]) - end :] for i in used]
        positions = None if split == "train" or rows.positions is None else rows.positions[used]
        return TextRows([rows.texts[i] for i in used], cut, rows.targets[used], positions=positions)


def _is_label(cell: Any) -> bool:
    return cell is not None and cell == cell and bool(str(cell).strip())  # neither empty nor NaN
