"""Tables and layouts: equal rows from every file format; a bad row is named by its line, or left out and counted."""

import json
import math

import pyarrow
import pyarrow.parquet
import pytest

from zoo.datamodules.row_text import RowLayout, numbers_in
from zoo.datamodules.sources import tables
from zoo.datamodules.sources.table_rows import BadRows
from zoo.datamodules.sources.tables import read_table
from zoo.errors import UserError
from zoo.tokenizers.numerals import rounded

ROWS = [("1", 'two "quoted"\nlines', "0.5"), ("2", "日本, naïve", "-1e3"), ("3", "no", "7")]
LAYOUT = RowLayout(["text"], ["y"], "text")


def write(file, rows=ROWS) -> None:
    names = ("id", "text", "y")
    if file.suffix in (".csv", ".tsv"):
        quoted = [["id", "text", "y"], *([f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in row] for row in rows)]
        file.write_text("".join({".csv": ",", ".tsv": "\t"}[file.suffix].join(row) + "\r\n" for row in quoted))
    elif file.suffix == ".parquet":
        columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
        columns["y"] = [float(y) for y in columns["y"]]
        pyarrow.parquet.write_table(pyarrow.table(columns), file)
    elif file.suffix in (".json", ".yaml"):  # YAML is a superset of JSON
        file.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1))
    else:
        file.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n\n" for row in rows))


def test_parquet_that_expands_beyond_its_size_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a" * 1000] * 5000, "y": [1.0] * 5000}), file)
    assert len(read_table(file, None, BadRows("stop")).rows) == 5000
    monkeypatch.setattr(tables, "_MIN_EXPANDED", 1 << 20)  # objects need less, texts more
    with pytest.raises(UserError, match=r"a\.parquet needs more than \d MiB of memory, although it has \d+ bytes"):
        read_table(file, None, BadRows("stop"))
    monkeypatch.setattr(tables, "_BYTES_PER_CELL", 1000)  # refused by the number of rows alone
    with pytest.raises(UserError, match=r"a\.parquet needs more than"):
        read_table(file, None, BadRows("stop"))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".yaml", ".parquet"])
def test_all_formats_give_equal_rows(suffix: str, tmp_path):
    file = tmp_path / f"rows{suffix}"
    write(file)
    rows = LAYOUT.read([read_table(file, None, BadRows("stop"))], BadRows("stop"))
    assert rows.texts == [text for _, text, _ in ROWS]
    assert rows.targets.tolist() == [[0.5], [-1000.0], [7.0]]
    line = {".csv": 4, ".tsv": 4, ".jsonl": 3}.get(suffix)  # the first row has two lines, or a blank line after it
    assert rows.places[1] == (f"{file}, line {line}" if line else f"{file}, row 2")


def test_quotes_have_no_meaning_in_txt_files(tmp_path):
    file = tmp_path / "scores.txt"
    file.write_bytes(b'1\t0.5\t"  unbalanced\r\n2\t-1\tbalanced "quotes"\r\n')
    table = read_table(file, ["id", "y", "text"], BadRows("stop"))
    assert [cells["text"] for _, cells in table.rows] == ['"  unbalanced', 'balanced "quotes"']
    file = file.rename(tmp_path / "scores.tsv")
    with pytest.raises(UserError, match=r"scores\.tsv, line 1: a tab expected after"):
        read_table(file, ["id", "y", "text"], BadRows("stop"))


def test_byte_order_mark_and_blanks_are_stripped_from_headers(tmp_path):
    (tmp_path / "a.csv").write_text("\ufefftext , y\na,1\n", encoding="utf-8")
    assert read_table(tmp_path / "a.csv", None, BadRows("stop")).columns == ["text", "y"]


def jsonl(bad: bytes) -> bytes:
    """A good row, a bad one and a good one."""
    return b'{"text":"a","y":1}\n' + bad + b'\n{"text":"c","y":4}'


# Content of a good row, a bad one and a good one; then the place of the bad row and the reason.
BAD = {
    "fields": (".csv", b"text,y\na,1\nb,2,3\nc,4\n", "line 3: it has 3 fields, not the 2 of the columns"),
    "quotes": (".csv", b'text,y\na,1\n"b"b,2\nc,4\n', "line 3: ',' expected after '\"'"),
    "a text for a number": (".csv", b"text,y\na,1\nb,much\nc,4\n", "line 3: its target 'y' is 'much', not a number"),
    "a grouped number": (".csv", b'text,y\na,1\nb,"1,000"\nc,4\n', "line 3: its target 'y' is '1,000', not a number"),
    "underscores": (".csv", b"text,y\na,1\nb,1_0\nc,4\n", "line 3: its target 'y' is '1_0', not a number"),
    "no number": (".csv", b"text,y\na,1\nb,\nc,4\n", "line 3: its target 'y' is empty"),
    "NaN": (".csv", b"text,y\na,1\nb,nan\nc,4\n", "line 3: its target 'y' is nan, not a finite number"),
    "infinity": (".csv", b"text,y\na,1\nb,-inf\nc,4\n", "line 3: its target 'y' is -inf, not a finite number"),
    "no text": (".csv", b"text,y\na,1\n ,2\nc,4\n", "line 3: its text, 'text', is empty"),
    "UTF-8": (".csv", b"text,y\na,1\ncaf\xe9,2\nc,4\n", "line 3: byte 0xe9 in it is not UTF-8 text"),
    "UTF-8 in JSON": (".jsonl", jsonl(b'{"text":"\xe9","y":2}'), "line 2: byte 0xe9 in it is not UTF-8 text"),
    "JSON": (".jsonl", jsonl(b'{"text":"b"'), r"line 2: it is not valid JSON \(Expecting ',' delimiter at column 12"),
    "nesting": (".jsonl", jsonl(b"[" * 99999), "line 2: it is not valid JSON"),
    "a list": (".jsonl", jsonl(b"[1]"), "line 2: it is not a mapping"),
    "a key": (".jsonl", jsonl(b'{"text":"b"}'), "line 2: it has no 'y', only text"),
    "true": (".jsonl", jsonl(b'{"text":"b","y":true}'), "line 2: its target 'y' is True, not a number"),
    "a huge number": (".jsonl", jsonl(b'{"text":"b","y":1' + b"0" * 400 + b"}"), "line 2: its target 'y' is 1000"),
    "a nested text": (".jsonl", jsonl(b'{"text":["b"],"y":1}'), r"line 2: its 'text' is \['b'\], not a text"),
    "null": (".yaml", b"- {text: a, y: 1}\n- {text: b, y: }\n- {text: c, y: 4}\n", "row 2: its target 'y' is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_row_is_named_or_left_out(name: str, tmp_path):
    suffix, content, reason = BAD[name]
    file = tmp_path / f"rows{suffix}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"rows{suffix}, .*{reason}") as error:
        LAYOUT.read([read_table(file, None, BadRows("stop"))], BadRows("stop"))
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("; fix it, or set --data.bad_rows skip to leave such rows out")
    skip = BadRows("skip")
    rows = LAYOUT.read([read_table(file, None, skip)], skip)
    assert rows.texts == ["a", "c"]
    assert rows.targets.tolist() == [[1.0], [4.0]]
    assert len(skip.reasons) == 1


UNUSABLE = {
    "empty.csv": (b"", "empty.csv is empty"),
    "empty.jsonl": (b"\n", "empty.jsonl is empty"),
    "header.csv": (b"text,y\n", "header.csv has no row that can be used"),
    "twice.csv": (b"text,y,y\na,1,2\n", "twice.csv has no header that can be read: two columns are called 'y'"),
    "latin.csv": (b"text,\xe9\na,1\n", "latin.csv has no header that can be read: byte 0xe9 in it is not UTF-8"),
    "other.csv": (b"text,yy\na,1\n", r"other.csv has no column 'y' \(did you mean 'yy'\?\): set --data.target_col"),
    "broken.json": (b"[1,\n", "broken.json is not valid JSON"),
    "broken.parquet": (b"PAR1", "broken.parquet cannot be read as Parquet"),
    "picture.png": (b"\x89PNG", "picture.png is not a table that can be read: give one of .csv, .json"),
    "list.yaml": (b"- a\n", "list.yaml, row 1: it is not a mapping"),
    "broken.yaml": (b"text: 'a\ny: 1", "broken.yaml: it is not valid YAML at line 2"),
    "control.yaml": (b"text: a\0\ny: 1", "control.yaml: it is not valid YAML"),
    "latin.yaml": (b"text: caf\xe9\ny: 1", "latin.yaml: byte 0xe9 in it is not UTF-8 text"),
    "nothing.yaml": (b"# nothing\n", "nothing.yaml: it is empty"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_file_gives_a_one_sentence_error(name: str, tmp_path):
    (tmp_path / name).write_bytes(UNUSABLE[name][0])
    with pytest.raises(UserError, match=UNUSABLE[name][1]) as error:
        LAYOUT.read([read_table(tmp_path / name, None, BadRows("stop"))], BadRows("stop"))
    assert "\n" not in str(error.value)


CELLS = {"name": "résnet", "flops": "650459392", "lr": "3.8909e-05", "half": 0.5, "missing": "", "nan": math.nan}


@pytest.mark.parametrize(
    ("row_format", "digits", "text"),
    [
        ("key_value", None, "name: résnet, flops: 650459392, lr: 3.8909e-05, half: 0.5"),
        ("key_value", 3, "name: résnet, flops: 6.5e8, lr: 3.89e-5, half: 0.5"),
        ("values", 4, "résnet 6.505e8 3.891e-5 0.5 - -"),
        (
            "json",
            None,
            '{"name": "résnet", "flops": 650459392, "lr": 3.8909e-05, "half": 0.5, "missing": null, "nan": null}',
        ),
    ],
)
def test_row_formats(row_format, digits, text):
    rendered = RowLayout(list(CELLS), [], row_format).text(CELLS)
    assert (rounded(rendered, digits) if digits else rendered) == text
    if row_format == "json":
        assert json.loads(text)["lr"] == 3.8909e-05


@pytest.mark.parametrize("digits", [1, 4, 15])
@pytest.mark.parametrize("value", ["1234567", "-0.000123456", "9.99999e-301", "0", "1e22", "+5"])
def test_rounded_numbers_are_the_nearest_with_the_given_digits(value: str, digits: int):
    text = rounded(value, digits)
    assert float(text) == float(f"{float(value):.{digits - 1}e}")
    assert json.loads(text) == float(text)
    assert len(text) <= digits + 7


def test_dates_are_not_rounded():
    text = "sold: 2021-03-04, year: 2021, at 1999/12/31T10, no: 2021-13-04 1999-12-31-5 1.1999-12-31"
    assert rounded(text, 2).startswith("sold: 2021-03-04, year: 2e3, at 1999/12/31T10, no: 2e3-13-4 2e3-")
    assert rounded(text, 2, powers=True).startswith(
        "sold: 2021 03 04, year: 2.0 e3, at 1999 12 31T10, no: 2.0 e3-1.3 e1"
    )


def test_numbers_in_text():
    assert numbers_in('{"lr": 1e-3, "beta1": -.5, "on": "2018-07"}') == [1e-3, -0.5, 2018, 7]
    assert numbers_in("24,96,3000 X1: +7. v1.2.3") == [24, 96, 3000, 7]
