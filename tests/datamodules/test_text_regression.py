"""TextRegression: splits without leaks, every option, copies of training rows only, one-sentence errors."""

import csv
import json
from itertools import chain

import numpy as np
import pytest
import torch

from zoo.datamodules import LinearRegressionTasks, SyntheticConfigs, TextRegression
from zoo.datamodules.sources import corpus
from zoo.datamodules.sources.corpus import data_label
from zoo.errors import UserError
from zoo.tokenizers import load_tokenizer

SPLITS = ("train", "val", "test")


def write_table(file, rows, names=("text", "y")):
    with file.open("w", encoding="utf-8", newline="") as content:
        csv.writer(content).writerows([names, *rows])
    return str(file)


@pytest.fixture
def reviews(tmp_path):
    """60 texts of 6 to 120 characters; the target is the index of the row."""
    return write_table(tmp_path / "reviews.csv", [("word " * (1 + i % 20) + str(i % 10), i) for i in range(60)])


@pytest.fixture
def news(tmp_path):
    """A folder with a YAML file for each text, and one without a target."""
    folder = tmp_path / "finance_01"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02}.yml").write_text(f'news: "Profit of company {i}: up"\nchange_rate: {i / 100}\n')
    (folder / "test_target.yml").write_text("news: |\n  Profit fell,\n  analysts said.\n")
    return folder


def test_default_is_the_identity_on_integers():
    data = TextRegression()
    data.setup("fit")
    assert [len(data.texts(split)) for split in (*SPLITS, "predict")] == [2560, 640, 2560, 2560]
    everything = list(chain(*(data.texts(split) for split in SPLITS)))
    assert len(set(everything)) == 5760
    assert set(everything) <= {f"X1: {x}" for x in range(-3000, 3001)}
    for split in SPLITS:
        assert data.targets(split)[:, 0].tolist() == [float(text[4:]) for text in data.texts(split)]
    assert (data_label("integers"), data.n_objectives, data.n_features, data.vocab_size) == ("integers", 1, 0, 257)
    batch = next(iter(data.val_dataloader()))
    assert batch.index.tolist() == list(range(32))
    assert [bytes(row).rstrip(b"\0").decode() for row in batch.tokens.tolist()] == batch.texts
    assert batch.tokens.shape == (32, max(map(len, batch.texts)))
    assert all(value is None or isinstance(value, str | int | float) for value in data.hparams.values())


def test_folder_of_yaml_files(news):
    data = TextRegression(str(news))
    assert data_label(str(news)) == data_label(f"{news}/") == "finance_01"
    assert sorted(chain(*(data.texts(split) for split in SPLITS))) == sorted(
        f"Profit of company {i}: up" for i in range(20)
    )
    assert [len(data.texts(split)) for split in SPLITS] == [16, 2, 2]
    assert data.texts("predict") == ["Profit fell,\nanalysts said.\n"]
    assert np.isnan(data.targets("predict")).all()
    one = TextRegression(str(news / "test_target.yml"))
    one.setup("predict")
    assert one.texts("predict") == data.texts("predict")
    assert data_label(str(news / "test_target.yml")) == "test_target"


def test_yaml_text_called_train_is_refused_as_training_split(news):
    (news / "00.yml").rename(news / "train_strike.yml")
    with pytest.raises(UserError, match=r"training by their names, and .*\.yml, which names no split"):
        TextRegression(str(news)).setup("fit")


def test_folder_without_targets_can_only_be_predicted(tmp_path):
    (tmp_path / "test_target.yml").write_text('news: "Profit fell"\n')
    with pytest.raises(UserError, match="no row with a target: it can only be predicted"):
        TextRegression(str(tmp_path)).setup("fit")
    TextRegression(str(tmp_path)).setup("predict")


def test_yaml_file_without_a_key_is_named_or_skipped(news):
    (news / "21.yml").write_text("news: no number\n")
    with pytest.raises(
        UserError,
        match=r"21\.yml: it has no 'change_rate', only news \(the option --data\.target_columns\); fix it",
    ):
        TextRegression(str(news)).setup("fit")
    (news / "22.yml").write_text("headline: no text\nchange_rate: 1\n")
    data = TextRegression(str(news), bad_rows="skip")
    data.setup("fit")
    assert len(data.reader.bad_rows.reasons) == 2


def test_keys_of_nested_mappings_are_named_with_dots(tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02}.yml").write_text(
            f"article: {{head: {{title: up {i}}}, length: {i}}}\nquote: {{change: {i}.5}}\n"
        )
    data = TextRegression(str(tmp_path), text_column="article.head.title", target_columns="quote.change")
    texts = list(chain(*(data.texts(split) for split in SPLITS)))
    targets = np.concatenate([data.targets(split) for split in SPLITS])[:, 0]
    assert dict(zip(texts, targets, strict=True)) == {f"up {i}": i + 0.5 for i in range(20)}
    rows = TextRegression(str(tmp_path), columns="article.head.title,article.length", target_columns="quote.change")
    assert "article.head.title: up 3, article.length: 3" in chain(*(rows.texts(split) for split in SPLITS))
    with pytest.raises(
        UserError, match=r"it has no 'article.titel', only article, quote \(the option --data.text_column"
    ):
        TextRegression(str(tmp_path), text_column="article.titel", target_columns="quote.change").setup("fit")


def test_a_table_to_test_without_the_target_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "new.csv").write_text("title,price\na,1\nb,2\n")
    data = TextRegression(str(tmp_path / "new.csv"), target_columns="cost", test_fraction=1.0, val_fraction=0.0)
    data.reader.has_stored_columns = True  # as with --ckpt_path
    with pytest.raises(UserError, match=r"no column 'cost'.*: add it to the file, name the column that holds it with"):
        data.setup("test")


def test_words_that_the_training_has_not_are_counted(tmp_path, capsys):
    write_table(tmp_path / "train.csv", [("red" if i % 2 else "blue", i) for i in range(20)])
    write_table(tmp_path / "valid.csv", [("red", 1)])
    write_table(tmp_path / "test.csv", [("red", 1), ("purple", 2)])
    data = TextRegression(str(tmp_path), target_columns="y", tokenizer="words")
    data.texts("train"), data.texts("val")
    assert capsys.readouterr().err == ""
    data.texts("test")
    assert "words that no training text has are in 1 of the 2 texts of the test split, such as 'purple'" in (
        capsys.readouterr().err
    )


def test_unknown_words_are_quoted_as_the_data_has_them(tmp_path, capsys):
    write_table(tmp_path / "train.csv", [(f"lr: {i / 8}", i) for i in range(20)])
    write_table(tmp_path / "test.csv", [("lr: 650459392", 1)])
    settings = {"target_columns": "y", "tokenizer": "words", "round_digits": 2, "power_tokens": True}
    data = TextRegression(str(tmp_path), **settings)
    data.texts("train"), data.texts("test")
    assert "in 1 of the 1 texts of the test split, such as '650459392'" in capsys.readouterr().err


def test_file_names_give_the_splits(tmp_path):
    for name, n in (("train", 10), ("valid", 3), ("test", 2)):
        write_table(tmp_path / f"{name}.csv", [(f"{name} {i}", i) for i in range(n)])
    data = TextRegression(str(tmp_path), target_columns="y")
    assert [len(data.texts(split)) for split in SPLITS] == [10, 3, 2]
    assert data.texts("predict") == data.texts("test")
    (tmp_path / "test.csv").unlink()
    with pytest.raises(UserError, match="has no test split, only train, val"):
        TextRegression(str(tmp_path), target_columns="y").setup("test")
    (tmp_path / "valid.csv").unlink()
    write_table(tmp_path / "test.csv", [("to predict",)], ["text"])
    data = TextRegression(str(tmp_path), target_columns="y")
    assert [len(data.texts(split)) for split in (*SPLITS, "predict")] == [8, 1, 1, 1]
    assert data.texts("predict") == ["to predict"]


def test_cut_splits_are_random_and_independent_of_the_run_seed(reviews, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    first, again = (TextRegression(reviews, target_columns="y") for _ in range(2))
    parts = [first.targets(split)[:, 0].tolist() for split in SPLITS]
    assert [len(part) for part in parts] == [48, 6, 6]
    assert sorted(chain(*parts)) == list(range(60))
    assert max(parts[1]) - min(parts[1]) > 20  # not the end of the file
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")  # another run must not train on the test rows of this one
    assert [again.targets(split)[:, 0].tolist() for split in SPLITS] == parts
    other = TextRegression(reviews, target_columns="y", split_seed=1)
    assert other.targets("val")[:, 0].tolist() != parts[1]
    test_only = TextRegression(reviews, target_columns="y", val_fraction=0, test_fraction=1)
    test_only.setup("test")
    assert test_only.targets("test")[:, 0].tolist() == list(range(60)) == test_only.targets("predict")[:, 0].tolist()
    with pytest.raises(UserError, match=r"the val split of .* has no rows: raise --data.val_fraction"):
        test_only.setup("validate")
    with pytest.raises(UserError, match=r"has no rows: lower --data.val_fraction and --data.test_fraction"):
        test_only.setup("fit")


def test_a_single_row_says_how_many_a_run_needs(tmp_path):
    (tmp_path / "one.csv").write_text("x,y\n1,2\n")
    with pytest.raises(UserError, match=r"one\.csv has 1 row that can be used: a run needs at least 2, one"):
        TextRegression(str(tmp_path / "one.csv"), target_columns="y").setup("fit")


def test_rows_of_a_group_stay_in_one_split(tmp_path):
    file = write_table(tmp_path / "a.csv", [(f"t{i}", i, f"g{i % 13}") for i in range(130)], ("text", "y", "group"))
    data = TextRegression(file, target_columns="y", group_column="group")
    groups = [{int(y) % 13 for y in data.targets(split)[:, 0]} for split in SPLITS]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 13
    assert len(groups[1]) == 2
    assert data.texts("train")[0].startswith("t")  # the group is not part of the text


def test_columns_are_rendered_as_text(tmp_path):
    file = write_table(tmp_path / "a.csv", [(i, 0.123456 * i, i, -i) for i in range(20)], ("a", "b", "y", "z"))
    data = TextRegression(file, target_columns="y,z", round_digits=3, val_fraction=0, test_fraction=1)
    assert data.n_objectives == 2
    assert data.texts("test")[7] == "a: 7, b: 0.864192"  # not rounded
    assert data.tokenizer.decode(data.dataset("test")[7].tokens) == "a: 7, b: 0.864"
    assert data.targets("test")[7].tolist() == [7, -7]
    assert (data.hparams["columns"], data.hparams["row_format"]) == (["a", "b"], "key_value")  # for later predictions
    data = TextRegression(file, target_columns="y", columns="b, a", row_format="values")
    assert data.texts("predict")[2] == "0.246912 2"
    with pytest.raises(UserError, match=r"set --data\.text_column to one of a, b, z"):
        TextRegression(file, target_columns="y", row_format="text").setup("fit")
    with pytest.raises(UserError, match=r"are unknown: set --data.target_columns to some of a, b, y, z"):
        TextRegression(file).setup("fit")
    with pytest.raises(UserError, match=r"no column 'c': set --data\.columns to columns that it has, a, b, y, z"):
        TextRegression(file, target_columns="y", columns="a,c").setup("fit")
    with pytest.raises(UserError, match=r"no column 'g'.*set --data\.group_column"):
        TextRegression(file, target_columns="y", group_column="g").setup("fit")


def test_prediction_needs_no_targets(tmp_path):
    data = TextRegression(
        write_table(tmp_path / "a.csv", [("x",), ("y",)], ["text"]), text_column="text", target_columns="y"
    )
    data.setup("predict")
    assert data.texts("predict") == ["x", "y"]
    assert np.isnan(data.targets("predict")).all()
    known = TextRegression(
        write_table(tmp_path / "b.csv", [("x", 3), ("y", "")]), text_column="text", target_columns="y"
    )
    assert known.targets("predict")[:, 0].tolist()[0] == 3
    with pytest.raises(UserError, match=r"no column 'y': set --data\.target_columns"):
        data.setup("test")


def test_hub_data_set(monkeypatch):
    import datasets

    def load_dataset(name, config, cache_dir):
        def rows(split, n):
            return datasets.Dataset.from_dict({"t": [f"{split} {i}" for i in range(n)], "y": range(n)})

        return datasets.DatasetDict({"train": rows("train", 20), "validation": rows("validation", 3)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(corpus, "online", lambda: True)
    data = TextRegression("some/scores:small", target_columns="y")
    assert [len(data.texts(split)) for split in ("train", "val")] == [20, 3]
    assert data.texts("predict")[2] == "validation 2"
    assert data_label("some/scores:small") == "scores-small"
    with pytest.raises(UserError, match=r"some/scores \(train\) has no column 'z'"):
        TextRegression("some/scores", target_columns="z").setup("fit")


def test_missing_file_error_suggests_a_similar_name(reviews, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"\(did you mean .*reviews.csv\?\): give .* or 'integers'"):
        TextRegression(str(tmp_path / "reviws.csv")).setup("fit")


@pytest.mark.parametrize("tokenizer", ["bytes", "characters", "bpe"])
def test_tokenizers_are_stored_and_compared(tokenizer: str, reviews, tmp_path):
    data = TextRegression(reviews, tokenizer, bpe_vocab_size=300, target_columns="y")
    ids = data.tokenizer.encode_batch(data.texts("test"))
    assert [data.dataset("test")[i].tokens for i in range(6)] == ids
    assert data.lengths("test").tolist() == [len(row) for row in ids]
    same = TextRegression(reviews, tokenizer, bpe_vocab_size=300, target_columns="y")
    same.load_state_dict(data.state_dict())
    with pytest.raises(UserError, match="trained with another tokenizer"):
        TextRegression(reviews, "bpe", bpe_vocab_size=257, target_columns="y").load_state_dict(data.state_dict())
    torch.save({"tokenizer": data.tokenizer.state()}, tmp_path / "run.ckpt")
    assert load_tokenizer(tmp_path / "run.ckpt").encode_batch(data.texts("test")) == ids


def test_long_texts_stop_are_truncated_or_skipped(reviews, capsys):
    options = {"target_columns": "y", "max_input_len": 50}
    with pytest.raises(UserError, match=r"reviews.csv, line \d+: its text has \d+ tokens, more than max_input_len 50"):
        TextRegression(reviews, **options).setup("fit")
    cut = TextRegression(reviews, long_rows="truncate", **options)
    assert cut.lengths("train").max() == 50
    assert len(cut.texts("train")) == 48
    skip = TextRegression(reviews, long_rows="skip", **options)
    skip.setup("fit")
    skip.setup("test")
    assert sum(len(skip.texts(split)) for split in SPLITS) == 60 - len(skip.reader.bad_rows.reasons) == 27
    assert len(skip.targets("train")) == len(skip.texts("train"))
    assert "zoo: 33 rows were left out; the first, " in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no row of the train split is left; the first, .* more than max_input_len 3"):
        TextRegression(reviews, target_columns="y", max_input_len=3, long_rows="skip").setup("fit")


def test_features_are_the_numbers_in_each_text(tmp_path):
    rows = [(json.dumps({"CPU": c, "RAM": 2.5 * c, "beta1": -c}), c) for c in range(20)]
    data = TextRegression(write_table(tmp_path / "a.csv", rows), target_columns="y", features=True)
    assert data.n_features == 3
    batch = next(iter(data.test_dataloader()))
    assert batch.features.tolist() == [[y, 2.5 * y, -y] for y in batch.targets[:, 0].tolist()]
    assert data.features("test").tolist() == batch.features.tolist()
    file = write_table(tmp_path / "b.csv", [*rows, ("7 and 8", 1)])
    with pytest.raises(UserError, match=r"line 22: its text has 2 numbers, the first row's 3"):
        TextRegression(file, target_columns="y", features=True).setup("predict")
    file = write_table(tmp_path / "c.csv", [("1e39", 1)])
    with pytest.raises(UserError, match="line 2: a number in its text is too large for a feature"):
        TextRegression(file, target_columns="y", features=True).setup("predict")


def test_only_the_training_split_has_augmented_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "5")
    file = write_table(tmp_path / "a.csv", [(f"profit rose to {1000 * i} dollars", i) for i in range(1, 41)])
    options = {"target_columns": "y", "synonyms": "english", "number_formats": True, "features": True}
    data = TextRegression(file, augment_copies=2, **{**options, "features": False})
    plain = TextRegression(file, target_columns="y")
    n = len(plain.texts("train"))
    assert data.texts("train")[:n] == plain.texts("train")
    assert len(data.texts("train")) == len(data.dataset("train")) == len(data.lengths("train")) == 3 * n
    assert data.targets("train").tolist() == plain.targets("train").tolist() * 3
    first, second = data.texts("train")[n : 2 * n], data.texts("train")[2 * n :]
    assert all(x not in plain.texts("train") for x in first)
    assert first != second
    for split in ("val", "test", "predict"):
        assert data.texts(split) == plain.texts(split)
    again = TextRegression(file, augment_copies=2, **{**options, "features": False})
    assert again.texts("train") == data.texts("train")
    monkeypatch.setenv("PL_GLOBAL_SEED", "6")
    other = TextRegression(file, augment_copies=2, **options)
    assert other.texts("train") != data.texts("train")
    assert other.features("train").tolist() == other.features("train")[:n].tolist() * 3  # other formats, equal numbers
    longest = max(map(len, plain.texts("train")))
    short = TextRegression(file, augment_copies=2, max_input_len=longest, **options)
    assert short.lengths("train").max() <= longest
    assert len(short.texts("train")) == 3 * n


REFUSED = {
    "together at most 1": {"val_fraction": 0.6, "test_fraction": 0.6},
    "max_input_len must be at least 1": {"max_input_len": 0},
    "round_digits must be from 1 to 17": {"round_digits": 0},
    "round_digits must be a whole number, from 1 to 17, not 2.5": {"round_digits": 2.5},
    "text_column names the whole text": {"text_column": "a", "columns": "b"},
    "augment_copies is 2: set it above 0 together with synonyms": {"augment_copies": 2},
    "data.jitter must be from 0 to 10, not -1": {"jitter": -1.0, "augment_copies": 1},
    "data.jitter must be from 0 to 10, not 100000.0": {"jitter": 1e5, "augment_copies": 1},
    "data.target_jitter must be from 0 to 10, not nan": {"target_jitter": float("nan"), "augment_copies": 1},
    "data.augment_copies must be a whole number": {"augment_copies": 1.5, "jitter": 0.1},
    "data.batch_size must be a whole number": {"batch_size": "3"},
    "data.val_fraction must be a fraction": {"val_fraction": "a"},
    "data.target_columns must be a text or a list of texts, not 3": {"target_columns": 3},
    "data.columns must be a text or a list of texts": {"columns": ["a", 1]},
    "data.text_column must be a text, not 1": {"text_column": 1},
    "data must be a text, not None": {"data": None},
    "data.row_format must be one of text, key_value, json, values, not 'foo'": {"row_format": "foo"},
    "data.bad_rows must be one of stop, skip, not 'ignore'": {"bad_rows": "ignore"},
    "data.long_rows must be one of stop, truncate, skip": {"long_rows": "cut"},
    "data.separator must be one of": {"separator": "x"},
    "augment_copies is 0: set it above 0 together with synonyms": {"number_formats": True},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_contradictory_settings_are_refused(reason: str):
    with pytest.raises(UserError, match=reason):
        TextRegression(**REFUSED[reason])


INPUTS = (
    "d_model,n_layers,n_heads,weight_decay,beta1,beta2,cooldown_steps,lr,global_batch_size,final_step,"
    "micro_batch_size,current_lr,tokens_so_far,eval_step,n_param"
)


def test_scan_bench(zoo_data):
    options = {"target_columns": "valid_loss", "columns": INPUTS, "group_column": "config_id", "features": True}
    data = TextRegression(str(zoo_data / "scan_bench"), row_format="values", round_digits=4, **options)
    data.setup("fit")
    data.setup("test")
    assert len(data.texts("train")) + len(data.texts("val")) == 3631
    assert len(data.texts("test")) == 893
    assert data.n_features == 15
    assert data.lengths("train").max() < 110
    ids = TextRegression(str(zoo_data / "scan_bench" / "train.csv"), **{**options, "columns": "config_id"})
    groups = [set(ids.reader.rows(split).texts) for split in SPLITS]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]


def test_timm_and_vader(zoo_data):
    file = zoo_data / "timm" / "benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv"
    data = TextRegression(str(file), target_columns="infer_samples_per_sec", val_fraction=0, test_fraction=1)
    assert len(data.texts("test")) == 1443
    assert data.texts("test")[0].startswith("model: test_vit, infer_img_size: 160, infer_step_time: 9.356")
    for name, n in (("tweets", 4200), ("amazonReviewSnippets", 3708), ("movieReviewSnippets", 10605)):
        file = zoo_data / "vader_floats" / f"{name}_GroundTruth.txt"
        data = TextRegression(str(file), column_names="id,score,text", target_columns="score", text_column="text")
        assert sum(len(data.texts(split)) for split in SPLITS) == n
        assert np.abs(data.targets("train")).max() <= 4


def test_old_argument_names_are_refused_in_python():
    for cls, old, new in ((TextRegression, "digits", "round_digits"), (SyntheticConfigs, "powers", "power_tokens")):
        with pytest.raises(UserError, match=f"the argument {old} of {cls.__name__} is now called {new}"):
            cls(**{old: 4})
    with pytest.raises(UserError, match=r"the argument steps_per_batch of LinearRegressionTasks no longer exists$"):
        LinearRegressionTasks(steps_per_batch=2)
