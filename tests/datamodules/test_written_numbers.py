"""Numbers with units, signs and separators; columns that hold them; columns that are a target under another name."""

import numpy as np
import pytest

from zoo.datamodules import TextRegression
from zoo.datamodules.column_warnings import warn_of_copied_targets, warn_of_dates, warn_of_written_numbers
from zoo.datamodules.row_text import RowLayout
from zoo.datamodules.written_numbers import plain_number
from zoo.errors import UserError


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("12 km", "12"), ("12 km/h", "12"), ("5 m²", "5"), ("-5 °C", "-5"), ("\u22123", "-3"), ("12%", "12"),
        ("3,5 %", "3.5"), ("3,14", "3.14"), ("$1,200.50", "1200.50"), ("-$5", "-5"), ("€ -3,50", "-3.50"),
        ("USD 12", "12"), ("12 USD", "12"), ("1,200", "1200"), ("1.234.567", "1234567"), ("1 234,5", "1234.5"),
        ("1'234", "1234"), ("1.200,50", "1200.50"), ("1.234", "1.234"),
    ],
)  # fmt: skip
def test_a_written_number_is_read(cell, expected):
    assert plain_number(cell) == expected


@pytest.mark.parametrize(
    "cell",
    ["", "high", "A12", "12:30", "2020-01-31", "1,2,3", "5-6", "12.5.6", "1,234,56", "2x4", "10k", "1_000", 12, None],
)
def test_other_texts_are_no_written_numbers(cell):
    assert plain_number(cell) is None


def test_a_target_that_is_a_written_number_is_refused_with_the_number():
    layout = RowLayout(["x"], ["y"], "text")
    remedy = r"write 1200\.50 \(no unit, sign or thousands separator; a point before decimals\)$"
    with pytest.raises(UserError, match=rf"its target 'y' is '\$1,200\.50', not a number: {remedy}"):
        layout.target({"y": "$1,200.50"}, "y")
    with pytest.raises(UserError, match=r"its target 'y' is 'yes', not a number: write 1 or 0$"):
        layout.target({"y": "yes"}, "y")
    with pytest.raises(UserError, match=r"its target 'y' is 'high', not a number$"):
        layout.target({"y": "high"}, "y")


def test_columns_of_written_numbers_are_printed(capsys):
    rows = [{"a": f"{i},500 EUR", "b": f"{i % 3}wd", "c": f"{i}.5", "d": f"text {i}"} for i in range(1, 13)]
    warn_of_written_numbers(rows, ["a", "b", "c", "d"])
    said = capsys.readouterr().err
    assert said == (
        "zoo: the values in column a, such as '1,500 EUR', are read as words, not as numbers: write 1500, without "
        "units, signs and thousands separators\n"
    )


def test_columns_of_dates_and_times_are_printed(capsys):
    rows = [{"d": f"2020-01-{i:02d}", "u": f"{i:02d}/01/2020", "t": f"{i}:30", "x": f"1-{i}"} for i in range(1, 21)]
    warn_of_dates(rows, ["d", "u", "t", "x"], is_split=False)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in said] == [
        f"zoo: the dates or times in column {name}" for name in ("d", "u", "t")
    ]
    warn_of_dates(rows, ["d"], is_split=True)  # year, month and day are words of their own
    warn_of_dates(rows[:5] * 10, ["u"], is_split=False)  # few different ones are categories
    assert capsys.readouterr().err == ""


def test_a_column_without_a_name_that_counts_the_rows_is_printed(tmp_path, capsys):
    rows = [f"{i},{i % 7},{i / 10}" for i in range(20)]
    notice = "a column without a name counts the rows, and is an input: leave it out of --data.columns"
    for lines, options, is_printed in ((rows, {}, True), (rows, {"columns": "a"}, False), (rows[::-1], {}, False)):
        (tmp_path / "rows.csv").write_text("\n".join([",a,y", *lines]) + "\n")
        TextRegression(str(tmp_path / "rows.csv"), target_columns="y", **options).texts("train")
        assert (notice in capsys.readouterr().err) == is_printed


def test_columns_that_equal_a_target_are_printed(capsys):
    rows = [{"a": f"{i}.0", "b": i + (i == 3), "c": 7, "d": "word"} for i in range(12)]
    targets = np.stack([np.arange(12.0), np.full(12, 7.0)], 1)
    warn_of_copied_targets(rows, ["a", "b", "c", "d"], targets, ["y", "constant"])
    said = capsys.readouterr().err
    assert said.startswith("zoo: column a has the numbers of the target 'y' in all rows")
    assert said.count("\n") == 1
