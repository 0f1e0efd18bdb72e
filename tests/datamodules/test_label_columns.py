"""Columns of texts and labels that the command does not name, and splits that keep the shares of the classes."""

import csv

import numpy as np
import pytest

from zoo.datamodules import Reviews
from zoo.errors import UserError


def write(file, header, rows):
    with file.open("w", newline="", encoding="utf-8") as lines:
        csv.writer(lines).writerows([header, *rows])
    return str(file)


TEXTS = [(f"some words number {i}", "ab"[i % 2]) for i in range(40)]


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        (("text", "label"), TEXTS),
        (("Label", "Text", "source"), [(label, text, "film") for text, label in TEXTS]),
        (("sentence", "label"), TEXTS),
        (("kind", "text"), [(label, text) for text, label in TEXTS]),
        (("kind", "sentence"), [(label, text) for text, label in TEXTS]),
        (("", "sentence", "kind"), [(i, *row) for i, row in enumerate(TEXTS)]),
        # Labels may be longer than texts, and texts may be repeated.
        (("a", "b"), [(f"the long name of class {label}", f"{i % 9}") for i, (_, label) in enumerate(TEXTS)]),
    ],
)
def test_columns_by_name_or_the_only_two(tmp_path, header, rows):
    data = Reviews(write(tmp_path / "rows.csv", header, rows))
    assert len(data.label_names) == 2
    expected = {text for text, _ in TEXTS} if header != ("a", "b") else {f"{i % 9}" for i in range(40)}
    assert set(data.texts("predict")) == expected
    # Stored, so that a checkpoint can be used with other tables.
    assert {data.hparams["text_column"], data.hparams["label_column"]} <= set(header)


@pytest.mark.parametrize(
    ("header", "rows", "options"),
    [
        (("id", "sentence", "kind"), [(i, *row) for i, row in enumerate(TEXTS)], "text_column and --data.label_column"),
        (("text", "kind", "source"), [(*row, "film") for row in TEXTS], "set --data.label_column to one of text, kind"),
        (("a", "b"), [("x", "y"), ("y", "x")] * 9, "text_column and --data.label_column to one of a, b"),
    ],
)
def test_unknown_columns_are_refused_with_the_options(tmp_path, header, rows, options):
    with pytest.raises(UserError, match=options):
        Reviews(write(tmp_path / "rows.csv", header, rows)).label_names  # noqa: B018


def test_files_of_a_folder_have_the_columns_of_the_training_file(tmp_path):
    write(tmp_path / "train.csv", ("sentence", "kind"), TEXTS)
    write(tmp_path / "test.csv", ("id", "sentence"), [(i, text) for i, (text, _) in enumerate(TEXTS)])
    data = Reviews(str(tmp_path))
    assert data.label_names == ["a", "b"]
    assert data.texts("predict") == [text for text, _ in TEXTS]  # a test file without labels is predicted
    stored = {name: data.hparams[name] for name in ("text_column", "label_column", "label_names")}
    alone = Reviews(write(tmp_path / "new.csv", ("sentence",), [(text,) for text, _ in TEXTS[:3]]), **stored)
    assert alone.texts("predict") == [text for text, _ in TEXTS[:3]]
    assert np.isnan(alone.targets("predict")).all()


def test_stratified_splits_have_the_share_of_each_class(tmp_path):
    rows = [(f"text {i}", "rare" if i % 20 == 0 else "often") for i in range(400)] + [("one more", "single")]
    file = write(tmp_path / "rows.csv", ("text", "label"), rows)
    for seed in range(3):
        data = Reviews(file, stratified=True, split_seed=seed)
        counts = {split: np.bincount(data.targets(split)[:, 0].astype(int), minlength=3) for split in ("val", "test")}
        assert [counts[split].tolist() for split in counts] == [[39, 2, 0], [38, 2, 0]]
        assert "single" in {data.label_names[int(k)] for k in data.targets("train")[:, 0]}
    assert data.texts("val") != Reviews(file, stratified=True, split_seed=0).texts("val")
    # Classes of few rows fill the validation split together.
    many = write(tmp_path / "many.csv", ("text", "label"), [(f"text {i}", f"class {i % 40}") for i in range(200)])
    sizes = [len(Reviews(many, stratified=True).texts(split)) for split in ("train", "val", "test")]
    assert sizes == [160, 20, 20]
