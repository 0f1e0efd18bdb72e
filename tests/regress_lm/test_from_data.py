"""RegressLM.from_data: chosen settings, training, calibration and reproducibility without the command line."""

import csv

import numpy as np
import pytest

from zoo.datamodules import TextRegression, teacher_models
from zoo.errors import UserError
from zoo.regress_lm import ExampleInput, RegressLM

SMALL = {"dim": 16, "num_samples": 8, "val_samples": 4}


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_models, "N_TREES", 20)
    monkeypatch.setattr(teacher_models, "N_COMPARED_TREES", 10)
    with (tmp_path / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("a", "b", "y"), *((i, i % 7 + 0.5, i / 10) for i in range(1, 81))])
    return str(tmp_path / "table.csv")


def test_model_of_a_table_has_the_chosen_settings_and_repeats(table, tmp_path):
    def train():
        data = TextRegression(table, target_columns="y", synthetic_rows=300)
        return RegressLM.from_data(data, max_steps=8, progress=False, **SMALL)

    model = train()
    h = model.hparams
    # Chosen by the rules, given to the model, given to the data.
    assert (h["optimizer"], h["round_digits"], h["power_tokens"]) == ("muon", 2, True)
    assert (h["dim"], h["n_heads"], h["num_samples"]) == (16, 1, 8)
    assert h["warmup_steps"] == 1
    assert model.temperatures is not None
    assert not model.training
    inputs = [ExampleInput("a: 40, b: 5.5"), ExampleInput("a: 3, b: 3.5")]
    quantiles = model.quantiles(inputs, 16, seed=0)
    assert quantiles.shape == (2, 5)
    assert np.array_equal(train().quantiles(inputs, 16, seed=0), quantiles)
    model.save(tmp_path / "model.ckpt")
    assert np.array_equal(RegressLM.load(tmp_path / "model.ckpt").quantiles(inputs, 16, seed=0), quantiles)


def test_data_with_copies_uses_the_best_weights(table):
    data = TextRegression(table, target_columns="y", synthetic_rows=0, augment_copies=2, target_jitter=0.1)
    model = RegressLM.from_data(data, max_steps=12, progress=False, seed=1, **SMALL)
    assert model.temperatures is not None
    assert len(model.sample([ExampleInput("a: 40, b: 5.5")], 3)[0]) == 3


def test_refusals(table):
    data = TextRegression(table, target_columns="y", synthetic_rows=20)
    for settings, message in (
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"dim": -1}, "dim"),
    ):
        with pytest.raises(UserError, match=message):
            RegressLM.from_data(data, **{"max_steps": 2, **settings})
    with pytest.raises(UserError, match="no column 'z'"):
        RegressLM.from_data(TextRegression(table, target_columns="z"))
    with pytest.raises(UserError, match="has no texts with numbers"):
        RegressLM.from_data("table.csv")
