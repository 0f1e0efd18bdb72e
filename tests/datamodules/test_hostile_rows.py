"""Damaged and hostile files of rows, labels and prompts: one sentence that names the file; never a hang or a crash."""

import contextlib
import json
import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoo.datamodules import TextLM, TextRegression
from zoo.datamodules.augment import Augmentation, number_forms
from zoo.datamodules.linear_regression_tasks import read_queries
from zoo.datamodules.row_text import list_columns
from zoo.datamodules.sources.labels import labels_of_rows, read_labels
from zoo.datamodules.sources.table_rows import BadRows
from zoo.datamodules.sources.tables import read_labelled, read_table
from zoo.errors import UserError
from zoo.icr import Task
from zoo.tokenizers.numerals import rounded

SAME_FOLDER = [HealthCheck.function_scoped_fixture]  # every example writes the same file
COLUMNS = 20_000


def rows_of(file, action="stop", **options):
    defaults = {"target_columns": "y", "text_column": "x", "val_fraction": 0, "test_fraction": 0}
    data = TextRegression(str(file), bad_rows=action, **(defaults | options))
    return data.reader.rows("train")


# ---- numbers


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("12", 12), (" 12 ", 12), ("+5", 5), ("-.5", -0.5), ("1e3", 1000), ("1e-999999999999999", None), ("010", 10),
        ("1_000", None), ("\uff11\uff12", None), ("0x10", None), ("inf", None), ("nan", None), ("1e400", None),
        ("1e999999999999999", None), ("9" * 5000, None), ("1,5", None), ("true", None), ("12abc", None), ("1e", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".yaml"])
def test_which_cells_are_numbers(cell, value, suffix, tmp_path):
    file = tmp_path / f"rows{suffix}"
    rows = [{"x": "first", "y": "1"}, {"x": "second", "y": cell}]
    texts = {
        ".csv": "x,y\n" + "".join(f'{row["x"]},"{row["y"]}"\n' for row in rows),
        ".jsonl": "\n".join(map(json.dumps, rows)),
        ".yaml": json.dumps(rows),
    }
    file.write_text(texts[suffix])
    if value is None:
        with pytest.raises(UserError, match=rf"rows\{suffix}, (line|row) \d: its target 'y' is") as error:
            rows_of(file)
        assert len(str(error.value)) < 300 + len(str(file))
        assert len(rows_of(file, "skip").texts) == 1
    else:
        assert rows_of(file).targets[1, 0] == value


def test_numbers_beyond_floats_in_texts_stay_as_they_are():
    text = "a 1e999999999999999, 0e999999999999999 and " + "9" * 500
    assert rounded(text, 2) == f"a 1e999999999999999, 0 and {'9' * 500}"
    assert number_forms("1e999999999999999") == number_forms("0e-999999999999999") == []
    change = Augmentation(None, None, True, jitter=0.1)
    assert "1e999999999999999," in change(text, random.Random(0))


# ---- tables


def test_a_wide_header_takes_linear_time(tmp_path):
    """The former search for each name among all names took 20,000 * 20,000 comparisons, minutes."""
    names = [f"column {i}" for i in range(COLUMNS)]
    file = tmp_path / "wide.csv"
    file.write_text(",".join(names) + "\n" + ",".join(["1"] * COLUMNS) + "\n")
    rows = rows_of(file, target_columns="column 7", text_column=None, columns=names[8:], max_input_len=10**7)
    assert rows.texts[0].count("column") == COLUMNS - 8
    with pytest.raises(UserError, match=r"has no column 'y': .*column 19 and 19980 more"):
        rows_of(file, text_column="column 1")
    file.write_text(",".join([*names, "column 3"]) + "\n")
    with pytest.raises(UserError, match="two columns are called 'column 3'"):
        rows_of(file)


def test_messages_name_few_columns():
    assert list_columns(["a", "b, c", "", "x" * 1000], most=3) == "a, 'b, c', '' and 1 more"
    assert len(list_columns(["x" * 1000])) == 40


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b'x,y\na,1\n"b,2\nc,3\nd,4\n', r"a\.csv, line 3: a quote in this row is never closed; close it"),
        ("a.csv", b"x,y\na\0,1\n", r"a\.csv, line 2: it contains a zero byte"),
        ("a.csv", "x,y\na,1\n".encode("utf-16"), r"a\.csv has no header.*a zero byte, which UTF-16 text"),
        ("a.csv", "x,y\na,1\n".encode("utf-16-le"), r"a\.csv has no header that can be read: it contains a zero byte"),
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.jsonl", b'{"x": "a", "y": 1, "y": 2}', r"a\.jsonl, line 1: .*its key 'y' occurs twice"),
        ("a.jsonl", b'{"x": "a", "y": ' + b"[" * 100_000, r"a\.jsonl, line 1: .*nested too deeply"),
        ("a.jsonl", b'{"x": "\\ud800", "y": 1}', r"a\.jsonl, line 1: byte 0x00 in it is not UTF-8"),
        ("a.jsonl", b'{"x": "a", "y": 1, "\\udcff": 1}', r"a\.jsonl, line 1: byte 0xff in it is not UTF-8"),
        ("a.jsonl", b'{"x": "a", "y": 1, "z": {"a": ["\\udcff"]}}', r"a\.jsonl, line 1: byte 0xff"),
        ("a.json", b"[" * 100_000, r"a\.json is not valid JSON: it is nested too deeply"),
        ("a.yaml", b"- " * 30_000, r"a\.yaml: it is not valid YAML at line 1: it is nested more than 100 levels deep"),
        ("a.yaml", b"x: &a [*a]\ny: 1", r"a\.yaml: it is not valid YAML at line 1: the alias"),
        ("a.yaml", b"x: a\ny: 1\ny: 2", r"a\.yaml: it is not valid YAML at line 3: the key 'y' occurs twice"),
        ("a.parquet", b"PAR1\0\0PAR1", r"a\.parquet cannot be read as Parquet"),
    ],
    ids=range(15),
)  # fmt: skip
def test_damaged_tables_are_refused_by_name(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason) as error:
        rows_of(tmp_path / name)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=rf"{name}"):  # also where bad rows are skipped: nothing is left
        rows_of(tmp_path / name, "skip")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_byte_order_mark_of_a_table(end, tmp_path):
    (tmp_path / "a.csv").write_bytes(("\ufeff" + end.join(["x,y", "a,1", 'b,"2"', ""])).encode())
    rows = rows_of(tmp_path / "a.csv")
    assert (rows.texts, rows.targets[:, 0].tolist()) == (["a", "b"], [1, 2])


def test_only_regular_files_are_data(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    for path, kind in ((tmp_path / "pipe.csv", "pipe"), (tmp_path, "pipe"), ("/dev/zero", "device")):
        for make in (rows_of, lambda file: TextLM(str(file), cache_dir=str(tmp_path / "cache")).stats("train")):
            with pytest.raises(UserError, match=f"is a {kind}: give a regular file"):
                make(path)
    for name in ("~nobody/x.csv", "a\0b", "**", "[", "x" * 300):
        with pytest.raises((UserError, OSError)):
            rows_of(tmp_path / name if name[0] != "~" else name)
    (tmp_path / "text.gz").write_bytes(b"\x1f\x8b\x08\0\xff")
    with pytest.raises(UserError, match=r"text\.gz is not UTF-8 text: .*compressed with gzip\); convert"):
        TextLM(str(tmp_path / "text.gz"), cache_dir=str(tmp_path / "cache")).stats("train")


PIECES = [
    '"', ",", "\n", "\r", "\t", ";", ":", "{", "}", "[", "]", "x", "y", "1", "1e999999999999", "nan", "\0", "|||", "- ",
    '{"x": "a", "y": 1}', "\ud800", "\udcff", "&a ", "*a", "true", "null", "9" * 1500, " ", "\\", "\ufeff",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=15).map("".join)


def as_bytes(text):
    return text.encode("utf-8", "surrogatepass")


@settings(derandomize=True, max_examples=150, deadline=None, suppress_health_check=SAME_FOLDER)
@given(st.sampled_from([".csv", ".tsv", ".txt", ".jsonl", ".json", ".yaml"]), st.sampled_from(["stop", "skip"]), TEXTS)
def test_any_table_is_read_or_refused(tmp_path, suffix, action, text):
    file = tmp_path / f"any{suffix}"
    file.write_bytes(as_bytes("x,y\na,1\n" * (suffix == ".csv") + text))
    with contextlib.suppress(UserError):
        read_table(file, None, BadRows(action))
    with contextlib.suppress(UserError):
        read_labelled(file, BadRows(action))
    with contextlib.suppress(UserError):
        rows_of(file, action)


# ---- labels and prompts


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"0": "a", "0": "b"}', r"labels\.json is not valid JSON \(its key '0' occurs twice\)"),
        ("[" * 100_000, r"labels\.json is not valid JSON \(it is nested too deeply\)"),
        (b"\xff", r"labels\.json is not UTF-8 text"),
        ('{"0": "\\ud800", "1": "b"}', r"labels\.json: '\\ud800' has half of a character"),
        ('{"0": 1}', r"labels\.json must be a list of names, or a mapping"),
        ('"a, b"', r"labels\.json must be a list of names, or a mapping"),
        ("", r"labels\.json is empty"),
    ],
)
def test_damaged_label_files_are_refused_by_name(content, reason, tmp_path):
    file = tmp_path / "labels.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=reason):
        read_labels(str(file))


def test_long_numbers_as_labels():
    labels = {"9" * 5000, "1", "2"}
    assert labels_of_rows(labels).names == sorted(labels)
    with pytest.raises(UserError, match="gives a label twice"):
        read_labels({1: "a", "1": "b"})


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "\ud800", 10**400, 10**30])
NESTED = VALUES | st.lists(VALUES | st.lists(VALUES, max_size=2), max_size=3)


@settings(derandomize=True, max_examples=150, deadline=None, suppress_health_check=SAME_FOLDER)
@given(
    NESTED | st.dictionaries(st.sampled_from(["0", "1", "\ud800", ""]), NESTED, max_size=3), TEXTS, st.integers(0, 40)
)
def test_any_label_file_is_read_or_refused(tmp_path, value, text, at):
    with contextlib.suppress(UserError):
        read_labels(value)
    file = tmp_path / "labels.json"
    content = json.dumps(value)
    for damaged in (content, content[:at] + text + content[at:]):
        file.write_bytes(as_bytes(damaged))
        with contextlib.suppress(UserError):
            read_labels(str(file))
    if "\0" not in text:
        with contextlib.suppress(UserError, FileNotFoundError):
            read_labels(text)


@settings(derandomize=True, max_examples=150, deadline=None, suppress_health_check=SAME_FOLDER)
@given(st.dictionaries(st.sampled_from(["x_context", "y_context", "x_query"]), NESTED), TEXTS, st.integers(0, 60))
def test_any_file_of_prompts_is_read_or_refused(tmp_path, changes, text, at):
    prompt = json.dumps({"x_context": [[1, 2]], "y_context": [3], "x_query": [[1, 1]]} | changes)
    file = tmp_path / "prompts.jsonl"
    for damaged in (prompt, prompt[:at] + text + prompt[at:]):
        file.write_bytes(as_bytes(damaged))
        with contextlib.suppress(UserError):
            read_queries(str(file), Task(D=2, K=3))


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"PAR1", r"is a Parquet file with another name: rename it to end in \.parquet"),
        (b"\x1f\x8b\x08", "is a gzip file with another name: decompress it first"),
        (b"PK\x03\x04", "is a ZIP or Excel file with another name: extract it first, or save the table as CSV"),
    ],
)
def test_binary_files_with_the_name_of_a_text_are_named(start, reason, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(start + b"\0\xff" * 20)
    with pytest.raises(UserError, match=reason):
        TextRegression(str(path), target_columns="y").setup("fit")
