"""SyntheticConfigs: the formula, the rows behind the published numbers, and test rows from other ranges."""

import json

import numpy as np
import pytest
import torch

from zoo.datamodules.synthetic_configs import Config, SyntheticConfigs
from zoo.errors import UserError
from zoo.training.regressor import scores


def data(**options):
    return SyntheticConfigs(batch_size=8, **options)


def test_rows_reproduce_the_published_baselines():
    """The oracle's MAE 3.83 and Spearman .981, and the median predictor's MAE 30.8."""
    rows = data()
    oracle = scores(rows.oracle("test"), rows.targets("test"))
    assert oracle["mae"] == pytest.approx(3.83, abs=0.005)
    assert oracle["spearman"] == pytest.approx(0.981, abs=0.0005)
    seen = np.concatenate([rows.targets("train"), rows.targets("val")])
    assert np.abs(rows.targets("test") - np.median(seen)).mean() == pytest.approx(30.8, abs=0.05)
    assert seen.max() == pytest.approx(4974, abs=0.5)
    assert [len(rows.texts(split)) for split in ("train", "val", "test", "predict")] == [1440, 160, 400, 400]


def test_texts_hold_the_configurations():
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


def test_texts_are_not_truncated_and_unknown_characters_are_tokens():
    """A length of 50 would end every text before its dropout rate."""
    rows = data(n_rows=200)
    batch = next(iter(rows.train_dataloader()))
    mask = torch.ones_like(batch.tokens, dtype=torch.bool) if batch.padding_mask is None else batch.padding_mask
    for ids, is_token, text in zip(batch.tokens, mask, batch.texts, strict=True):
        assert rows.tokenizer.decode(ids[is_token].tolist()) == text
        assert "dropout" in json.loads(text)
    with pytest.raises(UserError, match=r"configuration 1: its text has 6. tokens, more than max_input_len 50"):
        data(n_rows=200, max_input_len=50).dataset("train")
    unknown = rows.tokenizer.encode("lr¶")
    assert unknown[:2] == rows.tokenizer.encode("lr")
    assert rows.tokenizer.decode([unknown[2]]) == "\ufffd"
    assert unknown[2] != 0


def test_vocabulary_does_not_depend_on_the_rows():
    few, other = data(n_rows=20), data(n_rows=50, rows_seed=5)
    assert few.tokenizer.state() == other.tokenizer.state()
    assert few.vocab_size == 99


def test_rows_depend_only_on_rows_seed(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert data(n_rows=50).texts("test") == data(n_rows=50, seed=9).texts("test")
    assert data(n_rows=50).texts("test") != data(n_rows=50, rows_seed=1).texts("test")


@pytest.mark.parametrize("test_on", ["lr", "batch_size", "layers", "dropout", "order"])
def test_test_rows_from_other_ranges(test_on):
    same, shifted = data(), data(test_on=test_on)
    assert shifted.texts("train") == same.texts("train")
    assert shifted.texts("val") == same.texts("val")
    assert shifted.texts("predict") == shifted.texts("test") != same.texts("test")
    assert len(shifted.texts("test")) == 400
    seen, new = same.configs("train"), shifted.configs("test")
    for i, name in enumerate(Config._fields):
        outside = (new[:, i] > seen[:, i].max()) | (new[:, i] < seen[:, i].min()) | ~np.isin(new[:, i], seen[:, i])
        assert outside.all() or name != test_on
    keys = list(json.loads(shifted.texts("test")[0]))
    assert keys == (sorted(Config._fields) if test_on == "order" else list(Config._fields))
    assert scores(shifted.oracle("test"), shifted.targets("test"))["mae"] == pytest.approx(4, abs=0.5)


def test_features_are_the_numbers_in_the_text():
    rows = data(n_rows=50, features=True)
    assert rows.n_features == 4
    np.testing.assert_allclose(rows.features("train"), rows.configs("train"), rtol=1e-6)
    assert next(iter(rows.train_dataloader())).features.shape == (8, 4)


def test_own_table_of_configurations(tmp_path):
    """A table's columns are rendered as the same JSON; predictions need no scores."""
    table = tmp_path / "mine.csv"
    table.write_text("lr,batch_size,layers,dropout\n0.01,32,4,0.25\n0.05,64,2,0.1\n")
    rows = data(data=str(table))
    assert rows.texts("predict")[0] == json.dumps({"lr": 0.01, "batch_size": 32, "layers": 4, "dropout": 0.25})
    assert np.isnan(rows.targets("predict")).all()
    trained = data()
    trained.setup("fit")
    table.write_text("dropout,name,layers,batch_size,lr\n0.25,first,4,32,0.01\n")  # other order, more columns
    again = data(data=str(table), columns=trained.hparams["columns"])
    assert again.texts("predict") == rows.texts("predict")[:1]


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="n_rows must be at least 20"):
        data(n_rows=3)
    with pytest.raises(UserError, match=r"test_on must be one of same, lr, .*, not 'depth'"):
        data(test_on="depth")
