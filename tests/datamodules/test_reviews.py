"""Reviews: file formats, splits by file names, labels, prompts, and one-sentence errors for bad input."""

import json

import numpy as np
import pytest

from zoo.datamodules import Reviews
from zoo.datamodules.sources.labels import read_labels
from zoo.errors import UserError

SPLITS = ("train", "val", "test")


def write_lines(file, rows):
    file.write_text("".join(f"{label} ||| {text}\n" for label, text in rows), encoding="utf-8")
    return str(file)


@pytest.fixture
def folder(tmp_path):
    """A folder with the files of two data sets, as in the course, and a file of label names."""
    for name, classes in (("sst", 5), ("cfimdb", 2)):
        for split, n in (("train", 30), ("dev", 6), ("test", 4)):
            rows = [(i % classes, f"{name} {split} {'so ' * (i % 7)}{i}") for i in range(n)]
            write_lines(tmp_path / f"{name}-{split}.txt", rows)
    (tmp_path / "sst-label-mapping.json").write_text('["awful", "bad", "average", "good", "excellent"]')
    return tmp_path


def test_prefix_of_file_names_selects_a_data_set(folder):
    data = Reviews(f"{folder}/sst", str(folder / "sst-label-mapping.json"), batch_size=4)
    assert data.label_names == ["awful", "bad", "average", "good", "excellent"]
    assert [len(data.texts(split)) for split in SPLITS] == [30, 6, 4]
    assert [data.texts(split)[0] for split in SPLITS] == ["sst train 0", "sst dev 0", "sst test 0"]
    assert data.texts("predict") == data.texts("test")
    assert data.targets("val")[:, 0].tolist() == [0, 1, 2, 3, 4, 0]
    assert all(value is None or isinstance(value, str | int | float) for value in data.hparams.values())


def test_batches_are_right_padded_and_of_similar_lengths(folder):
    data = Reviews(f"{folder}/sst", "a,b,c,d,e", batch_size=4, seed=0)
    batch = next(iter(data.val_dataloader()))
    assert batch.padding_mask is not None
    assert batch.targets.tolist() == [[0], [1], [2], [3]]
    for row, mask, text in zip(batch.tokens, batch.padding_mask, batch.texts, strict=True):
        n = int(mask.sum())
        assert mask[:n].all()
        assert row[0] == data.tokenizer.bos_id
        assert data.tokenizer.decode(row[:n].tolist()) == text
        assert not row[n:].any()
    lengths = data.lengths("train")
    spread = [np.ptp(lengths[batch.index]) for batch, _ in zip(data.train_dataloader(), range(7), strict=False)]
    assert np.mean(spread) < np.ptp(lengths) / 2


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_table_formats_and_merged_labels(tmp_path, suffix):
    rows = [{"stars": str(1 + i % 5), "words": f"text {i}"} for i in range(20)]
    file, separator = tmp_path / f"rows.{suffix}", "\t" if suffix == "tsv" else ","
    if suffix == "jsonl":
        file.write_text("\n".join(json.dumps(row | {"stars": int(row["stars"])}) for row in rows))
    else:
        file.write_text("\n".join(separator.join(row) for row in [("stars", "words"), *(row.values() for row in rows)]))
    columns = {"text_column": "words", "label_column": "stars"}
    data = Reviews(str(file), **columns)
    assert data.label_names == ["1", "2", "3", "4", "5"]
    assert sum(len(data.texts(split)) for split in SPLITS) == 20
    data.setup("predict")
    assert data.texts("predict") == [f"text {i}" for i in range(20)]
    assert data.targets("predict")[:, 0].tolist() == [i % 5 for i in range(20)]
    names = '{"1": "negative", "2": "negative", "4": "positive", "5": "positive"}'
    binary = Reviews(str(file), names, bad_rows="skip", val_fraction=0, test_fraction=1, **columns)
    binary.setup("test")
    assert (binary.label_names, len(binary.reader.bad_rows.reasons)) == (
        ["negative", "positive"],
        4,
    )  # label 3 has no name
    assert binary.label_spellings == ["1", "4"]


def test_labels_as_names_are_stored_for_other_data(tmp_path):
    file = write_lines(tmp_path / "rows.txt", [("good", "x"), ("bad", "y")] * 10)
    data = Reviews(file)
    assert data.label_names == ["bad", "good"]
    again = Reviews(write_lines(tmp_path / "new.txt", [("good", "z")]), data.hparams["label_names"])
    assert again.label_names == ["bad", "good"]
    assert again.targets("predict").tolist() == [[1]]
    assert read_labels('["bad", "good"]').classes == {"0": 0, "1": 1, "bad": 0, "good": 1}


def test_prompts_are_tokenized_but_not_part_of_the_texts(folder):
    data = Reviews(f"{folder}/cfimdb", "negative,positive", prompt="{text} Is it {choices}? It is", lowercase=True)
    ids = data.dataset("val")[0].tokens
    assert data.tokenizer.decode(ids) == "cfimdb dev 0 Is it negative or positive? It is"
    assert data.texts("val")[0] == "cfimdb dev 0"
    assert data.prompt_parts == ("", " Is it negative or positive? It is")
    assert Reviews(f"{folder}/cfimdb").prompt_parts is None
    five = Reviews(f"{folder}/sst", "a,b,c,d,e", prompt="{text} {choices}")
    assert five.choices == "a, b, c, d, or e"
    for prompt in ("Is it good?", "{text} Is {text} good?"):
        with pytest.raises(UserError, match=r"prompt must contain {text}, which the text replaces, once"):
            Reviews("x", prompt=prompt)


def test_truncation_keeps_the_prompt(folder):
    data = Reviews(f"{folder}/sst", "a,b,c,d,e", prompt="{text} So?", long_rows="truncate", max_input_len=12)
    texts = [data.tokenizer.decode(row.tokens) for row in (data.dataset("train")[i] for i in range(30))]
    assert all(text.endswith(" So?") for text in texts)
    assert data.lengths("train").max() == 12
    with pytest.raises(
        UserError, match=r"the prompt after the text has 5 tokens, .* set --data\.max_input_len above 5"
    ):
        Reviews(f"{folder}/sst", "a,b,c,d,e", prompt="{text} Yes?", long_rows="truncate", max_input_len=4).setup("fit")


def test_placeholder_labels_are_not_read_or_scored(folder, capsys):
    file = folder / "cfimdb-test.txt"
    write_lines(file, [(0, f"text {i}") for i in range(12)])
    data = Reviews(f"{folder}/cfimdb", "negative,positive")
    data.setup("test")
    assert "all 12 labels of the test split are '0': if they are placeholders" in capsys.readouterr().err
    write_lines(file, [(-1, f"text {i}") for i in range(12)])
    for given in (f"{folder}/cfimdb", str(file)):
        data = Reviews(given, "negative,positive", unlabelled="test")
        data.setup("predict")
        assert len(data.texts("predict")) == 12
        assert np.isnan(data.targets("predict")).all()
    with pytest.raises(UserError, match=r"the test split of .*cfimdb has placeholders for labels"):
        Reviews(f"{folder}/cfimdb", "negative,positive", unlabelled="test").setup("test")
    with pytest.raises(UserError, match="unlabelled must name some of train, val, test"):
        Reviews("x", unlabelled="tset")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("7 ||| text", r"line 2: its label '7' is none of 0, 1, negative, positive; fix it, or set --data\.bad_rows"),
        ("0 text", r"line 2: it has no \|\|\| between a label and a text"),
        ("0 ||| ", r"line 2: its text, 'text', is empty"),
        (" ||| text", r"line 2: its label 'label' is empty"),
        ("0 ||| caf\udce9", r"line 2: byte 0xe9 in it is not UTF-8 text"),
        ("0 ||| " + "x" * 60, r"line 2: its text has 61 tokens, more than max_input_len 50; raise --data"),
    ],
)
def test_bad_line_is_named_or_skipped_and_counted(tmp_path, line, sentence):
    file = tmp_path / "reviews.txt"
    file.write_text("1 ||| fine\n" + line + "\n" + "0 ||| bad\n1 ||| good\n" * 12, errors="surrogateescape")
    with pytest.raises(UserError, match=r"reviews\.txt, " + sentence):
        Reviews(str(file), "negative,positive", max_input_len=50, test_fraction=0, val_fraction=0).setup("fit")
    data = Reviews(str(file), "negative,positive", max_input_len=50, bad_rows="skip", long_rows="skip")
    for split in SPLITS:
        data.dataset(split)
    assert len(data.reader.bad_rows.reasons) == 1


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ("only", "label_names: classification needs at least two classes, but there is only 'only'"),
        (" ,", "label_names: classification needs at least two classes, but there is none"),
        ('["a", 3]', "must be a list of names, or a mapping"),
        ("[broken", "label_names is not valid JSON"),
    ],
)
def test_invalid_label_names_are_refused(names, sentence):
    with pytest.raises(UserError, match=sentence):
        read_labels(names)


@pytest.mark.parametrize("options", [{"label_column": "labl"}, {}])
def test_missing_labels_error_names_the_options(tmp_path, options):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\n" + ("a film,1\n" if options else "a film, \n") * 20)
    with pytest.raises(UserError, match=r"rows\.csv has no labels in a column 'labe?l' from which to derive"):
        _ = Reviews(str(file), **options).labels


def test_prediction_needs_no_labels(tmp_path):
    (tmp_path / "rows.csv").write_text("text\nx\ny\n")
    (tmp_path / "rows.txt").write_text("||| x\n ||| y\n")
    for file in ("rows.csv", "rows.txt"):
        data = Reviews(str(tmp_path / file), "bad,good")
        assert data.texts("predict") == ["x", "y"]
        assert np.isnan(data.targets("predict")).all()


def test_label_with_two_signs_is_sorted_as_a_word(tmp_path):
    assert Reviews(write_lines(tmp_path / "rows.txt", [("--5", "x"), ("-1", "y")])).label_names == ["--5", "-1"]


def test_missing_label_names_file():
    with pytest.raises(FileNotFoundError, match=r"there is no file nowhere\.json: set --data\.label_names"):
        read_labels("nowhere.json")


def test_sst_and_amazon_alexa(zoo_data):
    sst = Reviews(str(zoo_data / "reviews" / "sst"), "awful,bad,average,good,excellent")
    assert [len(sst.texts(split)) for split in SPLITS] == [8544, 1101, 2210]
    alexa = Reviews(
        str(zoo_data / "reviews" / "amazon_alexa.tsv"), '{"1": "negative", "5": "positive"}', bad_rows="skip",
        long_rows="truncate", text_column="verified_reviews", label_column="rating",
    )  # fmt: skip
    alexa.setup("fit")
    assert len(alexa.reader.bad_rows.reasons) > 0
