"""RowReader: rows of texts with targets, from files, folders, the hub or a generated data set, in splits.

The data modules of rows (`TextRegression`, `SyntheticConfigs`, `Reviews`) each combine a reader, a layout that turns
table rows into texts and targets, and a tokenizer.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from itertools import chain
from pathlib import Path

from zoo.console.argument_names import print_notice
from zoo.datamodules.row_settings import RowSettings
from zoo.datamodules.row_text import RowLayout, is_missing, parse_columns
from zoo.datamodules.rows import Rows
from zoo.datamodules.sources import tables
from zoo.datamodules.sources.corpus import hub_tables, is_local, split_files, split_named
from zoo.datamodules.sources.remote import copied_file
from zoo.datamodules.sources.table_rows import BadRows, Table
from zoo.datamodules.sources.tables import hub_table
from zoo.errors import UserError
from zoo.files.remote_files import is_url
from zoo.training.random_streams import stream

# Files whose names have one of these words and that hold no target are to be predicted.
_UNLABELLED = re.compile(r"(?<![a-z])(test|predict)(?![a-z])", re.IGNORECASE)

Tables = Mapping[str, list[Table]]  # by split


class RowReader:
    """Reads a data source and gives its rows in the splits "train", "val", "test" and "predict".

    A missing "val" split, and a missing "test" split where "val" is missing too, are cut from the training rows.
    "predict" has the files without targets whose names have the word test or predict; without such files, all rows of
    data without splits; else the test split, or the validation split without one.

    Args:
        settings: the data source, the fractions of splits and the treatment of bad rows.
        choose_layout: returns the roles of the columns, given the tables of all splits; called once.
        read_file: returns the table in a file.
        target_columns: names of the target columns, by which files without targets are recognised; or a function that
            returns them, given the tables of all splits.
        cache_dir: folder for hub data sets.
        generated: data sets that need no file: name -> function from "train", "val" or "test" to a table.
        unlabelled: splits of which all targets are placeholders, read as NaN.
        is_stratified: cut splits that have the same share of each class.
    """

    def __init__(
        self,
        settings: RowSettings,
        choose_layout: Callable[[Tables], RowLayout],
        read_file: Callable[[Path, BadRows], Table],
        target_columns: str | list[str] | Callable[[Tables], list[str]] | None,
        cache_dir: Path,
        generated: Mapping[str, Callable[[str], Table]] | None = None,
        unlabelled: Collection[str] = (),
        is_stratified: bool = False,
    ) -> None:
        self.settings = settings
        self.bad_rows = BadRows(settings.bad_rows)
        self._choose_layout, self._read_file, self._target_columns = choose_layout, read_file, target_columns
        self._cache_dir, self._generated, self._unlabelled = cache_dir, generated or {}, unlabelled
        self._is_stratified = is_stratified
        self.has_stored_columns = False  # whether the columns come from a trained model, which needs them all
        self._rows: dict[str, Rows] = {}

    # ---- public

    @property
    def is_generated(self) -> bool:
        """Whether the data is a generated data set."""
        return self.settings.data in self._generated

    @cached_property
    def layout(self) -> RowLayout:
        """Roles of the columns."""
        return self._choose_layout(self.tables)

    def rows(self, split: str) -> Rows:
        """The rows of a split, at least one.

        Raises:
            UserError: the split does not exist or is empty, or a row in it cannot be used.
        """
        # Read the split when first requested; an empty one is an error.
        if split not in self._rows:
            rows = self._read(split)
            # Name the option that makes the split larger.
            if not rows.texts:
                cut = {} if split in self.tables and "val" in self.tables else self._cut_rows
                total = sum(len(part.texts) for part in cut.values())
                if split == "train" and total == 1:
                    raise UserError(
                        f"{self.settings.data} has 1 row that can be used: a run needs at least 2, one for training "
                        "and one for validation"
                    )
                options = "lower --data.val_fraction and --data.test_fraction"
                remedy = options if split == "train" else f"raise --data.{split}_fraction"
                raise UserError(f"the {split} split of {self.settings.data} has no rows: {remedy}")
            self._rows[split] = rows
        return self._rows[split]

    def has_split(self, split: str) -> bool:
        """Whether there are rows for the split "train", "val" or "test"."""
        if split in self.tables or self.is_generated:
            return True
        if "train" not in self.tables:
            return False
        return (split == "val" or "val" not in self.tables) and bool(self._cut_rows[split].texts)

    def has_valid_length(self, place: str, n_tokens: int) -> bool:
        """Whether a text of `n_tokens` can be used. It cannot be if it is empty, or too long and long_rows is skip.

        Raises:
            UserError: it cannot be used, and the settings say "stop".
        """
        # An empty text is a bad row; a long one stops the run, is truncated or is skipped.
        limit, long_rows = self.settings.max_input_len, self.settings.long_rows
        if not n_tokens:
            self.bad_rows.refuse(place, "its text is empty for the tokenizer")
            return False
        if n_tokens <= limit or long_rows == "truncate":
            return True
        reason = f"its text has {n_tokens} tokens, more than max_input_len {limit}"
        if long_rows == "stop":
            raise UserError(
                f"{place}: {reason}; raise --data.max_input_len, or set --data.long_rows to truncate or skip"
            )
        self.bad_rows.leave_out(place, reason)
        return False

    def print_cut(self, split: str) -> None:
        """Print how many rows a validation or test split has that was cut at random from a larger data set."""
        s = self.settings
        if split not in ("val", "test") or split in self.tables or "val" in self.tables or self.is_generated:
            return
        n, total = len(self.rows(split).texts), sum(len(rows.texts) for rows in self._cut_rows.values())
        if n < total:
            other = "test" if split == "val" else "val"
            print_notice(
                f"the {split} split is {n} of the {total} rows of {s.data}, cut off at random: "
                f"--data.{split}_fraction 1 --data.{other}_fraction 0 takes all",
            )

    def print_sizes(self) -> None:
        """Print the number of rows of each split of a run, where some were cut off at random.

        Print as well which training file is named for another split: without a name for training all files are.
        """
        if "val" in self.tables or self.is_generated:
            return
        sizes = [
            f"{len(rows.texts):,} for {use}"
            for split, use in (("train", "training"), ("val", "validation"), ("test", "tests"))
            if (rows := self._cut_rows[split]).texts
        ]
        print_notice(f"rows of {self.settings.data}: {', '.join(sizes)}; cut off at random (--data.val_fraction)")
        # The name of a YAML file is often that of its text.
        files = [Path(table.name) for table in self.tables["train"]]
        others = [file for file in files if file.suffix.lower() not in tables.YAML]
        named = [file for file in others if split_named(file.name) in ("val", "test")]
        if named and len(files) > 1:
            print_notice(
                f"{named[0]} is used for training, because no file is named for it: if it is not for training, put the "
                "word train into the names of the files that are"
            )

    @cached_property
    def tables(self) -> dict[str, list[Table]]:
        """The tables of each split that the data has, and those without targets as "predict"."""
        # The source is a generated data set, a hub data set, or local files.
        data, path = self.settings.data, Path(os.path.expanduser(self.settings.data))
        if data in self._generated:
            return {split: [self._generated[data](split)] for split in ("train", "val", "test")}
        if is_url(data):
            path = copied_file(data)
        if not is_local(path):
            offered = ", ".join(map(repr, self._generated))
            hub = hub_tables(data, tables.SUFFIXES, offered, self._cache_dir)
            return {split: [hub_table(f"{data} ({split})", table)] for split, table in hub.items()}
        # Files belong to the split that their name says; files to predict are those without targets.
        read = {
            split: [(file, self._read_file(file, self.bad_rows)) for file in files]
            for split, files in _files_by_split(path).items()
            if files
        }
        targets = self._target_columns
        if callable(targets):
            targets = targets({split: [table for _, table in files] for split, files in read.items()})
        given: dict[str, list[Table]] = {}
        for split, files in read.items():
            for file, table in files:
                may_lack = not path.is_file() and _UNLABELLED.search(file.stem)
                is_question = may_lack and not _has_targets(table, targets)
                given.setdefault("predict" if is_question else split, []).append(table)
        return given

    @property
    def predicted_split(self) -> str:
        """The split to predict: the rows without targets; else all rows of unsplit data; else one of the splits."""
        unsplit = () if {"val", "test"} & self.tables.keys() else ("train",)
        return next(split for split in ("predict", *unsplit, "test", "val") if split in self.tables)

    # ---- private

    def _read(self, split: str) -> Rows:
        given = self.tables
        if split == "predict":
            return self._read_given(self.predicted_split, False)
        # A split that the data has is read as it is; a missing one is cut from the training rows.
        if "train" not in given and split not in given:
            raise UserError(f"{self.settings.data} has no row with a target: it can only be predicted")
        if split in given and (split != "train" or "val" in given):
            return self._read_given(split)
        if split == "test" and "val" in given:
            raise UserError(f"{self.settings.data} has no test split, only {', '.join(given)}")
        return self._cut_rows[split]

    def _read_given(self, split: str, need_targets: bool = True) -> Rows:
        """The rows of a split that the data has."""
        layout, given = self.layout._replace(is_stored=self.has_stored_columns), self.tables[split]
        if self._unlabelled and {split, *(split_named(Path(table.name).name) for table in given)} & {*self._unlabelled}:
            layout, need_targets = layout._replace(targets=[]), False
        return layout.read(given, self.bad_rows, need_targets)

    @cached_property
    def _cut_rows(self) -> dict[str, Rows]:
        """The training rows without the rows cut off, and those, as "val" and "test"."""
        # Only missing splits are cut; the cut depends on split_seed alone.
        s = self.settings
        fractions = {"val": s.val_fraction, "test": s.test_fraction}
        fractions = {split: 0.0 if split in self.tables else fraction for split, fraction in fractions.items()}
        return self._read_given("train").split(fractions, stream(s.split_seed, "split"), self._is_stratified)


def _has_targets(table: Table, columns: str | list[str] | None) -> bool:
    """Whether a row has a target. A table without rows keeps its split, whose error then names it."""
    # One cell with a value is enough.
    names = parse_columns(columns, table.names)
    try:
        return not table.rows or any(not is_missing(cells.get(name)) for _, cells in table.rows for name in names)
    except UserError:  # two cells have this name: the error about their row names its place
        return True


def _files_by_split(path: Path) -> dict[str, list[Path]]:
    """The files of each split.

    Raises:
        UserError: the training files are YAML, named so, and another YAML file names no split. Then "train" may be a
            word in the name of a text.
    """
    # Names of YAML files may contain the word "train" by accident; then another YAML file names no split.
    files = split_files(path, tables.SUFFIXES)
    if path.is_dir():
        used = set(chain(*files.values()))
        unused = [file for file in sorted(path.iterdir()) if file.suffix.lower() in tables.YAML and file not in used]
        if unused and any(file.suffix.lower() in tables.YAML for file in files["train"]):
            raise UserError(
                f"{path} has files for training by their names, and {unused[0].name}, which names no split: "
                "rename one of them"
            )
    return files
