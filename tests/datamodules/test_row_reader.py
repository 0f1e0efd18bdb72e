"""RowReader: splits of files and generated data; unusual column names in fit and prediction."""

import csv
import json
import pickle
from collections import Counter

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from torch.utils.data import DataLoader

from zoo.datamodules import Reviews, SyntheticConfigs, TextRegression
from zoo.datamodules.row_data import RowReader
from zoo.datamodules.row_settings import RowSettings
from zoo.datamodules.row_text import RowLayout, parse_columns
from zoo.datamodules.sources.table_rows import Table
from zoo.datamodules.sources.tables import read_table
from zoo.errors import UserError
from zoo.training.batches import Row, collate

LAYOUT = RowLayout(["text"], ["y"], "text", "group")


def write_csv(file, rows, header=("text", "y", "group")) -> str:
    with file.open("w", encoding="utf-8", newline="") as content:
        csv.writer(content).writerows([header, *rows])
    return str(file)


def reader(tmp_path, data, generated=None, unlabelled=(), **settings) -> RowReader:
    return RowReader(
        RowSettings(str(data), **settings),
        lambda tables: LAYOUT,
        lambda file, bad: read_table(file, None, bad),
        "y",
        tmp_path / "cache",
        generated,
        unlabelled,
    )


# ---- splits


def test_reader_cuts_splits_by_group_and_predicts_all_rows(tmp_path):
    file = write_csv(tmp_path / "a.csv", [(f"t{i}", i, i % 10) for i in range(50)])
    rows = reader(tmp_path, file, val_fraction=0.2, test_fraction=0.2)
    sizes = {split: len(rows.rows(split).texts) for split in ("train", "val", "test", "predict")}
    assert sizes == {"train": 30, "val": 10, "test": 10, "predict": 50}
    groups = Counter(group for split in ("train", "val", "test") for group in set(rows.rows(split).groups))
    assert set(groups.values()) == {1}
    assert rows.rows("val") is rows.rows("val")
    assert rows.rows("predict").places[0] == f"{file}, line 2"
    assert rows.layout is LAYOUT


def test_reader_splits_a_folder_and_separates_files_without_targets(tmp_path):
    write_csv(tmp_path / "train.csv", [(f"t{i}", i, i) for i in range(20)])
    write_csv(tmp_path / "valid.csv", [("v", 1, 1)])
    write_csv(tmp_path / "test.csv", [("q", "?", 1), ("r", " ", 2)])
    rows = reader(tmp_path, tmp_path)
    assert {split: len(group) for split, group in rows.tables.items()} == {"train": 1, "val": 1, "predict": 1}
    assert rows.rows("predict").texts == ["q", "r"]
    assert np.isnan(rows.rows("predict").targets).all()
    with pytest.raises(UserError, match="has no test split, only"):
        rows.rows("test")


def test_a_file_named_for_tests_that_is_used_for_training_is_reported(tmp_path, capsys):
    """Without a file named for training, all files of a folder are."""
    write_csv(tmp_path / "wine.csv", [(f"t{i}", i, i) for i in range(20)])
    write_csv(tmp_path / "wine-test.csv", [("v", 1, 1)])
    notice = f"{tmp_path}/wine-test.csv is used for training, because no file is named for it"

    def is_reported(data):
        reader(tmp_path, data).print_sizes()
        return notice in capsys.readouterr().err

    assert is_reported(tmp_path)
    assert not is_reported(tmp_path / "wine-test.csv")
    (tmp_path / "wine.csv").rename(tmp_path / "wine-train.csv")
    assert not is_reported(tmp_path)


def test_rows_to_predict_alone_have_no_other_splits(tmp_path):
    write_csv(tmp_path / "test.csv", [("q", "", 1)])
    rows = reader(tmp_path, tmp_path)
    assert rows.predicted_split == "predict"
    assert not any(rows.has_split(split) for split in ("train", "val", "test"))


def test_reader_of_a_generated_data_set(tmp_path):
    def squares(split: str) -> Table:
        size = {"train": 4, "val": 2, "test": 3}[split]
        return Table("squares", None, [(f"{split} {i}", {"text": str(i), "y": i * i, "group": 0}) for i in range(size)])

    rows = reader(tmp_path, "squares", {"squares": squares})
    assert rows.is_generated
    assert rows.rows("train").targets[:, 0].tolist() == [0, 1, 4, 9]
    assert rows.rows("predict").texts == rows.rows("test").texts == ["0", "1", "2"]
    with pytest.raises(FileNotFoundError, match="or 'squares'"):
        reader(tmp_path, "/nowhere.csv", {"squares": squares}).rows("train")


def test_reader_counts_bad_and_long_rows(tmp_path, capsys):
    file = write_csv(tmp_path / "a.csv", [("a", 1, 1), ("b", "much", 2), ("c", 3, 3)])
    rows = reader(tmp_path, file, bad_rows="skip", long_rows="skip", max_input_len=5, val_fraction=0, test_fraction=0)
    assert rows.rows("train").texts == ["a", "c"]
    assert len(rows.bad_rows.reasons) == 1
    assert [rows.has_valid_length("place", n) for n in (0, 1, 5, 6)] == [False, True, True, False]
    assert len(rows.bad_rows.reasons) == 2
    rows.bad_rows.print_left_out()
    assert "zoo: 2 rows were left out; the first, " in capsys.readouterr().err
    with pytest.raises(UserError, match=r"line 3: its target 'y' is 'much', not a number; fix it"):
        reader(tmp_path, file).rows("train")


BAD_FILES = {
    # Rows that cannot be parsed, that have no text, and that are too long, between those of the indices 1, 4 and 6.
    ".csv": "x,y\none,two,three\nb,1\n,2\none,two,three\nc,nothing\nlong text that is long,4\nd,5\n",
    ".jsonl": "{\n".join(
        ["", '{"x": "b", "y": 1}\n{"y": 2}\n', '{"x": "c"}\n{"x": "long text that is long"}\n{"x": "d", "y": 5}\n']
    ),
    ".json": '[1, {"x": "b", "y": 1}, {"y": 2}, null, {"x": "c"}, {"x": "long text that is long"}, {"x": "d"}]',
    ".yaml": "- 1\n- {x: b, y: 1}\n- {y: 2}\n- 3\n- {x: c}\n- {x: long text that is long}\n- {x: d, y: 5}\n",
}


@pytest.mark.parametrize("suffix", BAD_FILES)
def test_index_is_the_position_in_the_input(suffix, tmp_path):
    file = tmp_path / f"rows{suffix}"
    file.write_text(BAD_FILES[suffix])
    skip = {"bad_rows": "skip", "long_rows": "skip", "max_input_len": 10}
    data = TextRegression(str(file), text_column="x", target_columns="y", **skip)
    rows = [*data.dataset("predict")]
    assert [(row.index, row.text) for row in rows] == [(1, "b"), (4, "c"), (6, "d")]
    # A second file continues the count.
    (tmp_path / "test-1.csv").write_text("x,y\ntoo,many,cells\na,1\n")
    (tmp_path / f"test-2{suffix}").write_text(BAD_FILES[suffix])
    (tmp_path / "train.csv").write_text("x,y\na,1\nb,2\n")
    file.unlink()
    if suffix == ".csv":
        data = TextRegression(str(tmp_path), text_column="x", target_columns="y", **skip)
        assert [row.index for row in data.dataset("test")] == [1, 3, 8]  # "c" has no number


def test_index_of_labelled_lines(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text("no bar\n\n1 ||| good\n1 |||\n0 ||| bad\n")
    data = Reviews(str(file), "bad,good", bad_rows="skip")
    assert [(row.index, row.text) for row in data.dataset("predict")] == [(1, "good"), (3, "bad")]


def test_reader_does_not_read_placeholders(tmp_path):
    write_csv(tmp_path / "train.csv", [("a", 1, 1)])
    write_csv(tmp_path / "test.csv", [("b", "placeholder", 1)])
    rows = reader(tmp_path, tmp_path, unlabelled={"test"}, val_fraction=0)
    assert np.isnan(rows.rows("test").targets).all()
    assert rows.rows("train").targets.tolist() == [[1.0]]


def test_datasets_work_with_a_plain_data_loader():
    data = TextRegression(max_input_len=10)
    dataset = data.dataset("val")
    assert isinstance(dataset[0], Row)
    batch = next(iter(DataLoader(dataset, batch_size=4, collate_fn=collate)))
    assert batch.texts == dataset.texts[:4]
    assert batch.targets.tolist() == dataset.targets[:4].tolist()
    assert dataset.features is None
    assert dataset.lengths.tolist() == data.lengths("val").tolist()


@pytest.mark.parametrize("cls", [TextRegression, SyntheticConfigs, Reviews])
def test_settings_in_checkpoints_rebuild_the_data(cls, tmp_path):
    data = cls()
    data.setup("fit")
    torch.save(dict(data.hparams), tmp_path / "hparams.pt")
    stored = torch.load(tmp_path / "hparams.pt", weights_only=True)
    again = cls(**json.loads(json.dumps(stored)))
    assert again.texts("val") == data.texts("val")
    assert again.targets("val").tolist() == data.targets("val").tolist()
    assert {"data", "tokenizer", "max_input_len", "seed", "bad_rows"} <= stored.keys()


@pytest.mark.parametrize("cls", [TextRegression, SyntheticConfigs, Reviews])
def test_data_modules_can_be_sent_to_other_processes(cls):
    data = cls()
    data.setup("validate")
    again = pickle.loads(pickle.dumps(data))
    assert again.texts("test") == data.texts("test")


def test_attributes_that_the_command_line_links():
    data = TextRegression(round_digits=3, power_tokens=True, max_input_len=40)
    assert (data.round_digits, data.power_tokens, data.max_input_len) == (3, True, 40)
    assert (data.n_objectives, data.n_features) == (1, 0)
    assert SyntheticConfigs(features=True).n_features == 4
    assert (SyntheticConfigs().max_input_len, Reviews().max_input_len) == (128, 512)
    assert TextRegression.renamed_arguments == {"digits": "round_digits", "powers": "power_tokens"}
    assert Reviews().label_spellings == ["negative", "positive"]


@pytest.mark.parametrize(("stage", "split", "n"), [("validate", "val", 4), ("test", "test", 4)])
def test_scored_share_of_one_file_is_printed(stage, split, n, tmp_path, capsys):
    file = write_csv(tmp_path / "a.csv", [(f"text {i}", i, i) for i in range(40)])
    options = {"target_columns": "y", "columns": "text"}
    TextRegression(file, **options).setup(stage)
    assert capsys.readouterr().err.startswith(
        f"zoo: the {split} split is {n} of the 40 rows of {file}, cut off at random"
    )
    TextRegression(file, **options, **{"val_fraction": 0, "test_fraction": 0, f"{split}_fraction": 1}).setup(stage)
    TextRegression(file, **options).setup("fit")
    assert not capsys.readouterr().err


# ---- column names


def test_parse_columns():
    assert parse_columns(None) == parse_columns("") == []
    assert parse_columns("a, b,,c ") == ["a", "b", "c"]
    assert parse_columns("a, b", ["a, b", "c"]) == ["a, b"]
    assert parse_columns(["a, b", ""], ["a, b", ""]) == ["a, b", ""]
    assert parse_columns("a,b", [" a", "b "]) == [" a", "b "]
    assert parse_columns(["x "], ["x"]) == ["x"]


def test_messages_quote_unusual_column_names(tmp_path):
    file = write_csv(tmp_path / "a.csv", [(1, 2, 3)], ("", "size, MB", "rate"))
    with pytest.raises(UserError, match=r"no column 'y': set --data\.target_columns to .*, '', 'size, MB', rate$"):
        TextRegression(file, target_columns="y").setup("fit")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_unusual_column_names_in_fit_and_prediction(tmp_path, suffix):
    """A comma, surrounding blanks and an unnamed index, from the training table to a checkpoint's settings."""
    names = ["", "size, MB", " rate ", "loss, final"]
    rows = [[str(i), str(2 * i), str(3 * i), str(4 * i)] for i in range(20)]

    def write(name, columns):
        file = tmp_path / f"{name}.{suffix}"
        cut = [[row[names.index(column)] for column in columns] for row in rows]
        if suffix == "csv":
            return write_csv(file, cut, columns)
        if suffix == "jsonl":
            file.write_text("\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in cut))
        else:
            table = {column: [row[i] for row in cut] for i, column in enumerate(columns)}
            pyarrow.parquet.write_table(pyarrow.table(table), file)
        return str(file)

    data = TextRegression(write("train", names), target_columns="loss, final", val_fraction=0, test_fraction=0)
    data.setup("predict")
    assert data.n_objectives == 1
    rate = "rate" if suffix == "csv" else " rate "  # blanks around the names of a CSV header are dropped
    assert data.texts("predict")[3] == f": 3, size, MB: 6, {rate}: 9"
    assert data.targets("predict")[3].tolist() == [12]
    # The stored settings read a table without targets and in another order.
    questions = write("questions", [" rate ", "", "size, MB"])
    again = TextRegression(**{**data.hparams, "data": questions})
    assert again.n_objectives == 1
    assert again.texts("predict") == data.texts("predict")
    chosen = TextRegression(questions, columns=["size, MB", "rate"], target_columns=["loss, final"])
    assert chosen.texts("predict")[3] == f"size, MB: 6, {rate}: 9"
    single = TextRegression(questions, columns="size, MB", target_columns=["loss, final"])
    assert single.texts("predict")[3] == "6"


def test_lists_and_strings_of_columns_are_equivalent(tmp_path):
    file = write_csv(tmp_path / "a.csv", [(i, i + 1, i + 2, i + 3) for i in range(10)], ("a", "b", "y", "z"))
    by_string = TextRegression(file, target_columns="y,z", columns="b, a")
    by_list = TextRegression(file, target_columns=["y", "z"], columns=["b", "a"])
    assert by_string.texts("predict") == by_list.texts("predict")
    assert by_string.n_objectives == by_list.n_objectives == 2
    headless = tmp_path / "b.csv"
    headless.write_text("1,2\n3,4\n")
    named = [TextRegression(str(headless), column_names=names, target_columns="y") for names in ("x,y", ["x", "y"])]
    assert named[0].texts("predict") == named[1].texts("predict") == ["1", "3"]


def test_json_keys_absent_from_the_first_row(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"a": 1, "y": 1}, {"a": 2, "b": "late", "y": 2}, {"c": 3, "y": 3}]
    file.write_text("\n".join(map(json.dumps, rows)))
    data = TextRegression(str(file), target_columns="y")
    assert data.texts("predict") == ["a: 1", "a: 2, b: late", "c: 3"]
    assert data.hparams["columns"] == ["a", "b", "c"]
