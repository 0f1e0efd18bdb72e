"""Cells inside mappings of JSON and Parquet rows: paths with dots, keys with dots, paths with two meanings."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from zoo.datamodules import TextLM, TextRegression
from zoo.datamodules.sources.nested_cells import NestedCells, columns_without
from zoo.errors import UserError

ROWS = [{"a": {"b.c": f"text {i}", "y": i}, "d.e": {"z": -i}, "n": i} for i in range(20)]


def write(folder, rows, suffix):
    if suffix == ".jsonl":
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return str(folder / f"rows{suffix}")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_paths_through_keys_with_dots(suffix, tmp_path):
    path = write(tmp_path, ROWS, suffix)
    data = TextRegression(path, text_column="a.b.c", target_columns="a.y,d.e.z")
    texts, targets = data.texts("predict"), data.targets("predict")
    assert texts == [f"text {i}" for i in range(20)]
    assert targets.tolist() == [[i, -i] for i in range(20)]
    columns = TextRegression(path, columns="a.y,n", target_columns="d.e.z")
    assert columns.texts("predict")[3] == "a.y: 3, n: 3"
    with pytest.raises(UserError, match=r"'a\.x'"):
        TextRegression(path, text_column="a.x", target_columns="n").setup("fit")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_path_with_two_values_is_refused_where_it_is_read(suffix, tmp_path):
    rows = [{"a": {"b": i + (i == 7)}, "a.b": i, "text": f"t{i}"} for i in range(20)]
    path = write(tmp_path, rows, suffix)
    data = TextRegression(path, text_column="text", target_columns="a.b", bad_rows="skip")
    assert sum(len(data.texts(split)) for split in ("train", "val", "test")) == 19
    assert len(TextRegression(path, text_column="text", target_columns="a.b").texts("predict")) == 20
    place = "line 8" if suffix == ".jsonl" else "row 8"
    with pytest.raises(UserError, match=rf"{place}: its 'a\.b' may be 'a\.b' or 'b' in 'a', which differ: rename one"):
        TextRegression(path, text_column="text", target_columns="a.b").setup("fit")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_nested_targets_and_groups_are_no_part_of_the_text(suffix, tmp_path):
    rows = [
        {"cfg": {"lr": i}, "res": {"loss": i, "acc": -i, "by": {"run": i // 2, "k": i}}, "res.loss": i}
        for i in range(20)
    ]
    path = write(tmp_path, rows, suffix)
    data = TextRegression(path, target_columns="res.loss", group_column="res.by.run")
    assert data.texts("predict")[3] == 'cfg: {"lr": 3}, res.acc: -3, res.by.k: 3'
    assert data.targets("predict").tolist() == [[i] for i in range(20)]
    assert data.hparams["columns"] == ["cfg", "res.acc", "res.by.k"]
    only = TextRegression(path, columns="cfg", target_columns="res.loss")  # one mapping is rendered, not refused
    assert only.texts("predict")[3] == 'cfg: {"lr": 3}'
    for inputs in ("res,cfg", "res"):
        with pytest.raises(
            UserError, match=r"'res' contains the target 'res\.loss'.* --data\.columns, such as res\.KEY"
        ):
            TextRegression(path, columns=inputs, target_columns="res.loss").setup("fit")
    with pytest.raises(UserError, match=r"'res\.by' contains the target 'res\.by\.run'"):
        TextRegression(path, columns="cfg,res.by", target_columns="res.by.run").setup("fit")
    flat = [{"res": f"r{i}", "res.loss": i} for i in range(20)]  # names with dots, as pandas writes them: no mappings
    assert TextRegression(write(tmp_path, flat, suffix), target_columns="res.loss").texts("predict")[3] == "r3"


def test_nested_numbers_are_proposed_as_targets_by_their_paths(tmp_path):
    path = write(tmp_path, ROWS, ".jsonl")
    with pytest.raises(UserError, match=r"set --data\.target_columns to some of a\.b\.c, a\.y, d\.e\.z, n$"):
        TextRegression(path).setup("fit")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_language_model_reads_nested_texts(suffix, tmp_path):
    rows = [{"a": {"t": f"text {i}\n", "u": {"v": "w"}}, "n": i} for i in range(20)]
    path = write(tmp_path, rows, suffix)
    data = TextLM(path, text_column="a.t", seq_len=4)
    data.prepare_data()
    assert data.tokenizer.decode(data.tokens("train").tolist()).startswith("text 0\n")
    with pytest.raises(UserError, match=r"has no column 'a\.x': set --data\.text_column to one of a\.t, a\.u\.v, n"):
        TextLM(path, text_column="a.x", seq_len=4).prepare_data()


def test_yaml_rows_without_the_default_column_are_read_completely(tmp_path):
    rows = [{"lr": f"{i}", "layers": f"{i + 1}", "loss": f"{i}"} for i in range(20)]
    for name in ("rows.json", "rows.yaml"):  # JSON is YAML
        (tmp_path / name).write_text(json.dumps(rows))
        data = TextRegression(str(tmp_path / name), target_columns="loss")
        assert data.texts("predict")[3] == "lr: 3, layers: 4", name
    (tmp_path / "news.yaml").write_text(json.dumps([{**row, "news": "up"} for row in rows]))
    assert TextRegression(str(tmp_path / "news.yaml"), target_columns="loss").texts("predict")[3] == "up"


def test_columns_without_paths():
    rows = [{"a": 1, "b": {"c": 1}}, {"a": None, "b": {"d": {"e": 2, "f": 3}}, "b.c": 1}, {"b": None}]
    assert columns_without(["a", "b"], rows, ["b.d.e"]) == ["a", "b.c", "b.d.f"]
    assert columns_without(["a", "b", "b.c"], rows, ["b.c"]) == ["a", "b.d"]
    assert columns_without(["a", "b"], rows, ["b.x", "a"]) == ["b"]


def test_cells_of_nested_mappings():
    cells = NestedCells({"a": {"b": {"c": 1}, "b.c": 1, "d": None}, "x.y": 3})
    assert (cells["a.b.c"], cells["x.y"], cells["a.b"], cells["a.d"]) == (1, 3, {"c": 1}, None)
    assert ("a.d" in cells, "a.e" in cells, "a.b.c.d" in cells, 5 in cells) == (True, False, False, False)
    assert cells.get("a.e", 7) == 7
    with pytest.raises(KeyError):
        cells["a.e"]
