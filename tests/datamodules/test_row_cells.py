"""RowReader: separators and cells of tables, in fit and prediction."""

import csv
import json
import warnings

import numpy as np
import pytest

from tests.datamodules.test_row_reader import write_csv
from zoo.datamodules import Reviews, TextRegression
from zoo.datamodules.sources.table_rows import BadRows
from zoo.datamodules.sources.tables import read_table
from zoo.errors import UserError


@pytest.mark.parametrize(
    ("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), (" ", "blanks"), ("  ", "blanks"), (",", None)]
)
def test_separators_are_detected_and_printed(separator, name, tmp_path, capsys):
    file = tmp_path / "rows.csv"
    file.write_text("\n".join(separator.join(row) for row in [("a", "y"), ("0.5", "1"), ("1.5", "2")]))
    table = read_table(file, None, BadRows("stop"))
    assert table.columns == ["a", "y"]
    assert [cells for _, cells in table.rows] == [{"a": "0.5", "y": "1"}, {"a": "1.5", "y": "2"}]
    printed = capsys.readouterr().err
    assert printed == (f"zoo: {file}: its columns are separated by {name} (--data.separator)\n" if name else "")
    assert read_table(file, ["c", "d"], BadRows("stop")).rows[0][1] == {"c": "a", "d": "y"}


def test_separator_that_is_given(tmp_path, capsys):
    file = tmp_path / "rows.csv"
    file.write_text("a,x;y\n1,5;1.5\n2,5;2.5\n")  # both signs give a table
    semicolon = TextRegression(str(file), target_columns="y", separator="semicolon")
    assert (semicolon.texts("predict"), semicolon.targets("predict").tolist()) == (["1,5", "2,5"], [[1.5], [2.5]])
    comma = TextRegression(str(file), target_columns="a")
    assert (comma.texts("predict"), comma.targets("predict").tolist()) == (["5;1.5", "5;2.5"], [[1.0], [2.0]])
    assert not capsys.readouterr().err
    file.write_text("text|label\na, b|x\nc|y\n")
    reviews = Reviews(str(file), separator="bar", val_fraction=0, test_fraction=0)
    assert (reviews.texts("train"), reviews.label_names) == (["a, b", "c"], ["x", "y"])


def test_separator_of_a_header_with_commas_in_names(tmp_path, capsys):
    file = tmp_path / "rows.csv"
    file.write_text("size, MB;loss, final\n1;2\n3;4\n")
    assert read_table(file, None, BadRows("stop")).columns == ["size, MB", "loss, final"]
    assert "separated by semicolons" in capsys.readouterr().err


def test_separator_is_not_changed_by_a_bad_row(tmp_path, capsys):
    file = tmp_path / "rows.csv"
    file.write_text("text,y\na b,1\nc; d,2,3\n")
    with pytest.raises(UserError, match="line 3: it has 3 fields, not the 2 of the columns"):
        read_table(file, None, BadRows("stop"))
    assert not capsys.readouterr().err


@pytest.mark.parametrize("lines", ["text\na b\nc d\n", "my text\none\ntwo words\n", "text\na; b\nc\n", "text\na\n"])
def test_one_column_of_text_is_not_split(lines, tmp_path, capsys):
    file = tmp_path / "rows.csv"
    file.write_text(lines)
    assert read_table(file, None, BadRows("stop")).columns == [lines.split("\n")[0]]
    assert not capsys.readouterr().err


def test_fields_beyond_the_csv_modules_limit(tmp_path):
    long_text = "word " * 40_000  # 200,000 characters
    table = read_table(tmp_path / write_csv(tmp_path / "a.csv", [(long_text, 1, 1)]), None, BadRows("stop"))
    assert table.rows[0][1]["text"] == long_text
    assert csv.field_size_limit() == 131_072


def test_whole_numbers_with_and_without_decimals_are_one_label(tmp_path):
    labels = ["0", "0.0", "1", "1.00", "-2.0"] * 4
    file = write_csv(tmp_path / "a.csv", [(f"t{i}", label) for i, label in enumerate(labels)], ("text", "label"))
    data = Reviews(file)
    assert data.label_names == ["-2.0", "0", "1"]
    assert data.targets("predict")[:5, 0].tolist() == [1, 1, 2, 2, 0]
    named = Reviews(file, '{"0": "bad", "1.0": "good", "-2": "worst"}')
    assert named.targets("predict")[:5, 0].tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("cell", ["", "?", "NaN", "unknown", "inf"])
def test_rows_to_predict_need_no_valid_target(cell, tmp_path):
    file = write_csv(tmp_path / "a.csv", [("x", cell), ("z", "1")], ("text", "y"))
    data = TextRegression(file, text_column="text", target_columns="y")
    data.setup("predict")
    assert np.isnan(data.targets("predict")[0, 0])
    assert data.targets("predict")[1, 0] == 1
    with pytest.raises(UserError, match="line 2: its target 'y' is"):
        data.setup("fit")
    reviews = Reviews(file, "bad,good", label_column="y")
    assert np.isnan(reviews.targets("predict")[0, 0])
    assert reviews.targets("predict")[1, 0] == 1


def test_reviews_with_unusual_column_names(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({" review, text ": f"t{i}", " stars": i % 2}) for i in range(20)))
    data = Reviews(str(file), text_column="review, text", label_column="stars")
    assert data.label_names == ["0", "1"]
    assert data.texts("predict")[:2] == ["t0", "t1"]
    assert data.targets("predict")[:2, 0].tolist() == [0, 1]


def test_a_misspelt_key_is_refused_and_an_absent_value_is_not(tmp_path):
    file = tmp_path / "rows.jsonl"
    options = {"target_columns": "y", "columns": ["size", "color"]}
    file.write_text('{"Size": 1, "color": "red"}\n{"Size": 2, "color": "blue"}\n')
    with pytest.raises(
        UserError, match=r"rows\.jsonl has 'size' in no row \(did you mean 'Size'\?\): set --data.columns"
    ):
        TextRegression(str(file), **options).texts("predict")
    file.write_text('{"size": null, "color": "red"}\n{"color": "blue"}\n')
    assert TextRegression(str(file), **options).texts("predict") == ["color: red", "color: blue"]
    (tmp_path / "folder").mkdir()  # files of one row each
    for i, row in enumerate(({"size": 1}, {"color": "red"})):
        (tmp_path / "folder" / f"{i}.yaml").write_text(json.dumps(row))
    assert TextRegression(str(tmp_path / "folder"), **options).texts("predict") == ["size: 1", "color: red"]


@pytest.mark.parametrize(
    ("cls", "options", "sentence"),
    [
        (TextRegression, {"target_columns": "y", "columns": "text,y"}, "'y' is a target and would be an input as well"),
        (
            TextRegression,
            {"target_columns": "y", "text_column": "y"},
            "drop it from --data.text_column or from --data.t",
        ),
        (TextRegression, {"target_columns": "y", "columns": "text,text"}, "--data.columns names 'text' twice"),
        (TextRegression, {"target_columns": ["y", "y"]}, "--data.target_columns names 'y' twice"),
        (TextRegression, {"target_columns": "y", "column_names": "a,y,y"}, "--data.column_names has 'y' twice"),
        (Reviews, {"text_column": "y", "label_column": "y"}, "from --data.label_column"),
    ],
)
def test_a_column_has_one_role(cls, options, sentence, tmp_path):
    file = write_csv(tmp_path / "a.csv", [(f"text {i}", i % 2, i) for i in range(9)])
    with pytest.raises(UserError, match=sentence):
        cls(file, **options).texts("predict")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_targets_that_float64_does_not_tell_apart(suffix, tmp_path):
    def targets(*numbers):
        file = tmp_path / f"rows{suffix}"
        rows = [f'{{"x": "a", "y": {number}}}' for number in numbers]
        file.write_text("\n".join(rows) if suffix == ".jsonl" else "\n".join(["x,y", *(f"a,{n}" for n in numbers)]))
        return TextRegression(str(file), target_columns="y", val_fraction=0, test_fraction=0).targets("train")

    with pytest.raises(UserError, match=r"1e-400.* too small for"):
        targets("0", "1e-400")
    with pytest.warns(
        UserWarning, match=r"line .: its 'y', 1700000000000000003, is 1.7e\+18 .* 63 distinct numbers .* become 2;"
    ):
        targets(*(1700000000000000000 + 3 * i for i in range(64)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        numbers = ("0.10000000000000000", "-0.1", "1700000000000000000", "0e-400", "0.123456789012345678")
        assert targets(*numbers)[:, 0].tolist() == [0.1, -0.1, 1.7e18, 0, 0.12345678901234568]
