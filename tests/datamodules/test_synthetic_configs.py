"""SyntheticConfigs: the formula, the very rows that published numbers are of, and test rows from elsewhere."""

import json

import numpy as np
import pytest
import torch

from zoo.datamodules.synthetic_configs import Config, SyntheticConfigs
from zoo.training.regressor import scores


def data(**options):
    return SyntheticConfigs(batch_size=8, **options)


def test_the_rows_are_those_that_were_measured_before():
    """The anchors: the oracle's MAE 3.83 and Spearman .981, the median predictor's MAE 30.8, rows of 59 to 64."""
    rows = data()
    oracle = scores(rows.oracle("test"), rows.targets("test"))
    assert oracle["mae"] == pytest.approx(3.83, abs=0.005)
    assert oracle["spearman"] == pytest.approx(0.981, abs=0.0005)
    seen = np.concatenate([rows.targets("train"), rows.targets("val")])
    assert np.abs(rows.targets("test") - np.median(seen)).mean() == pytest.approx(30.8, abs=0.05)
    assert seen.max() == pytest.approx(4974, abs=0.5)
    assert [len(rows.texts(split)) for split in ("train", "val", "test", "predict")] == [1440, 160, 400, 400]


def test_the_text_says_it_all():
    rows = data(n_rows=100)
    for split in ("train", "val", "test"):
        for text, numbers, oracle in zip(rows.texts(split), rows.configs(split), rows.oracle(split), strict=True):
            config = Config(**json.loads(text))
            assert tuple(numbers) == config
            assert list(json.loads(text)) == ["lr", "batch_size", "layers", "dropout"]
            score = 0.5 / config.lr + 0.3 * config.batch_size + 0.2 * config.layers - 100 * config.dropout
            assert oracle.item() == pytest.approx(score)
    noise = data().targets("train") - data().oracle("train")
    assert noise.mean() == pytest.approx(0, abs=0.5)
    assert noise.std() == pytest.approx(5, abs=0.3)


def test_no_row_is_cut_and_none_becomes_padding():
    """The seed's length of 50 ended every row before its dropout rate, and unknown characters became padding."""
    rows = data(n_rows=200)
    batch = next(iter(rows.train_dataloader()))
    real = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.real is None else batch.real
    for ids, kept, text in zip(batch.tokens, real, batch.texts, strict=True):
        assert rows.tokenizer.decode(ids[kept].tolist()) == text
        assert "dropout" in json.loads(text)
    with pytest.raises(ValueError, match=r"configuration 1: its text has 6. tokens, more than max_input_len 50"):
        data(n_rows=200, max_input_len=50).dataset("train")
    unknown = rows.tokenizer.encode("lr¶")
    assert unknown[:2] == rows.tokenizer.encode("lr")
    assert rows.tokenizer.decode([unknown[2]]) == "\ufffd"
    assert unknown[2] != 0


def test_the_vocabulary_does_not_depend_on_the_rows():
    few, other = data(n_rows=20), data(n_rows=50, rows_seed=5)
    assert few.tokenizer.state() == other.tokenizer.state()
    assert few.vocab_size == 99


def test_rows_depend_on_their_seed_alone(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert data(n_rows=50).texts("test") == data(n_rows=50, seed=9).texts("test")
    assert data(n_rows=50).texts("test") != data(n_rows=50, rows_seed=1).texts("test")


@pytest.mark.parametrize("test_on", ["lr", "batch_size", "layers", "dropout", "order"])
def test_test_rows_from_elsewhere(test_on):
    here, there = data(), data(test_on=test_on)
    assert there.texts("train") == here.texts("train")
    assert there.texts("val") == here.texts("val")
    assert there.texts("predict") == there.texts("test") != here.texts("test")
    assert len(there.texts("test")) == 400
    seen, new = here.configs("train"), there.configs("test")
    for i, name in enumerate(Config._fields):
        outside = (new[:, i] > seen[:, i].max()) | (new[:, i] < seen[:, i].min()) | ~np.isin(new[:, i], seen[:, i])
        assert outside.all() or name != test_on
    keys = list(json.loads(there.texts("test")[0]))
    assert keys == (sorted(Config._fields) if test_on == "order" else list(Config._fields))
    assert scores(there.oracle("test"), there.targets("test"))["mae"] == pytest.approx(4, abs=0.5)


def test_features_are_the_numbers_in_the_text():
    rows = data(n_rows=50, features=True)
    assert rows.n_features == 4
    np.testing.assert_allclose(rows.features("train"), rows.configs("train"), rtol=1e-6)
    assert next(iter(rows.train_dataloader())).features.shape == (8, 4)


def test_configurations_of_your_own(tmp_path):
    """A table's columns become the same JSON; to predict, it needs no scores."""
    table = tmp_path / "mine.csv"
    table.write_text("lr,batch_size,layers,dropout\n0.01,32,4,0.25\n0.05,64,2,0.1\n")
    rows = data(data=str(table))
    assert rows.texts("predict")[0] == json.dumps({"lr": 0.01, "batch_size": 32, "layers": 4, "dropout": 0.25})
    assert np.isnan(rows.targets("predict")).all()
    trained = data()
    trained.setup("fit")
    table.write_text("dropout,name,layers,batch_size,lr\n0.25,first,4,32,0.01\n")  # in another order, and more
    again = data(data=str(table), columns=trained.hparams["columns"])
    assert again.texts("predict") == rows.texts("predict")[:1]


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="n_rows must be at least 20"):
        data(n_rows=3)
    with pytest.raises(ValueError, match=r"test_on is one of same, lr, .*, not 'depth'"):
        data(test_on="depth")
