"""RegressionSettings: the options of data modules of texts with numbers."""

from dataclasses import dataclass
from typing import get_args

from zoo.datamodules.row_settings import RowSettings, check_text
from zoo.datamodules.row_text import RowFormat, parse_columns
from zoo.datamodules.sources.table_rows import repeated_name
from zoo.datamodules.teacher_models import TeacherKind
from zoo.errors import UserError, check_choice, check_counts, check_number


@dataclass
class RegressionSettings(RowSettings):
    """Settings of data modules of texts with numbers.

    Args:
        text_column: column that holds the text; default: in YAML files "news", else the only column that is left.
        target_columns: columns of the numbers to predict, a list or separated by commas; default: in YAML files
            "change_rate".
        columns: without text_column, columns that are rendered as a text, a list or separated by commas; default: all
            but target_columns and group_column.
        row_format: rendering of these columns: "key_value" (`lr: 0.1, layers: 2`), "json", "values" (`0.1 2`), or
            "text", one column unchanged; default: "text" for one column, else "key_value".
        round_digits: significant digits to which numbers in texts are rounded, from 1 to 17; a date such as 1970-01-31
            is not; default: no rounding.
        power_tokens: with round_digits, write a number as two words, mantissa and power of ten: 0.00041 as 4.1 e-4; and
            a date as three: 1970 01 31.
        column_names: names of the columns of a CSV or TSV file without a header, a list or separated by commas;
            default: the first row is the header.
        group_column: rows with equal values in this column are cut into the same split; default: rows are independent.
        features: give models the numbers in each text as well; all texts must have equally many.
        augment_copies: number of changed copies of every training row, placed after all rows, at least 0; 0 for none.
        synonyms: replace words in copies by synonyms: a YAML file of words, each with a list of synonyms, or "english"
            for the list included here; default: off.
        background: add a sentence before or after each copy, from this text file with one sentence per line; default:
            off.
        number_formats: rewrite numbers in copies: 1000 as 1,000, 1e3 or 1000.0.
        jitter: multiply each number in copies by exp(N(0, jitter^2)), less in columns of similar numbers such as years,
            and no date; 0 turns it off; at most 10.
        target_jitter: multiply the targets of copies by exp(N(0, target_jitter^2)); 0 turns it off; at most 10.
        synthetic_rows: number of synthetic training rows, placed after all others: cells and words of the training rows
            mixed, labelled by an ensemble of models that are fitted to the training rows; for at most a few thousand
            rows, where 20000 is a good number; 0 for none.
        synthetic_noise: factor of the noise of their labels, from 0 to 1. With less noise fewer steps are needed, but
            the intervals of predictions are too narrow unless they are calibrated on validation rows.
        teacher: the ensemble that labels synthetic rows: "thorough", chosen among many models by cross-validation; or
            "fast", extra trees and ridge regression alone, in a small part of the time.
        unlabelled: texts without targets on which RegressLM pretrains its encoder before the first step, together with
            the training texts: a text file (.txt, .md; one text per line), a table with the columns that the training
            texts are made of, a folder of such files, all of them used, or a hub data set. A tokenizer "bpe" or "words"
            is trained on them too.
    """

    text_column: str | None = None
    target_columns: list[str] | str | None = None
    columns: list[str] | str | None = None
    row_format: RowFormat | None = None
    round_digits: int | None = None
    power_tokens: bool = False
    column_names: list[str] | str | None = None
    group_column: str | None = None
    features: bool = False
    augment_copies: int = 0
    synonyms: str | None = None
    background: str | None = None
    number_formats: bool = False
    jitter: float = 0.0
    target_jitter: float = 0.0
    synthetic_rows: int = 0
    synthetic_noise: float = 1.0
    teacher: TeacherKind = "thorough"
    unlabelled: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.round_digits is not None:
            name, digits = "--data.round_digits", self.round_digits
            check_number(name, digits, "from 1 to 17", lambda value: 1 <= value <= 17, whole=True)
        check_counts(0, **{"--data.synthetic_rows": self.synthetic_rows})
        noise = "--data.synthetic_noise"
        check_number(noise, self.synthetic_noise, "from 0 to 1", lambda value: 0 <= value <= 1)
        check_choice("--data.teacher", self.teacher, get_args(TeacherKind))
        for name in ("text_column", "group_column", "target_columns", "columns", "column_names", "unlabelled"):
            if (value := getattr(self, name)) is not None:
                check_text(f"--data.{name}", value, is_list=name.endswith(("columns", "names")))
        if self.row_format is not None:
            check_choice("--data.row_format", self.row_format, get_args(RowFormat))
        for name in ("jitter", "target_jitter"):
            check_number(f"--data.{name}", getattr(self, name), "from 0 to 10", lambda value: 0 <= value <= 10)
        check_counts(0, **{"--data.augment_copies": self.augment_copies})
        if (repeated := repeated_name(parse_columns(self.column_names))) is not None:
            raise UserError(f"--data.column_names has {repeated!r} twice: give each column another name")
        # Options that contradict each other.
        if self.text_column and (self.columns or self.row_format not in (None, "text")):
            raise UserError(
                "--data.text_column names the whole text: drop it, or drop --data.columns and --data.row_format"
            )
        if self.features and self.jitter:
            raise UserError("--data.features would be the numbers before --data.jitter changes them: drop one of them")
        # Copies need a change, and changes need copies.
        changes = (self.synonyms, self.background, self.number_formats, self.jitter, self.target_jitter)
        if any(changes) != bool(self.augment_copies):
            raise UserError(
                f"--data.augment_copies is {self.augment_copies}: set it above 0 together with synonyms, background, "
                "number_formats, jitter or target_jitter, or set none of them"
            )
