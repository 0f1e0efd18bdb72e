"""The demo's rows: chosen by the model's base class, made from public attributes of the data."""

from types import SimpleNamespace

import numpy as np
import torch

from zoo.demo.result_rows import result_row


class LanguageModel:
    pass


class Mine(LanguageModel):
    pass


class Regressor:
    pass


class Other:
    pass


def metrics(**values):
    return {name: torch.tensor(value) for name, value in values.items()}


def test_the_row_is_that_of_a_base_class():
    tokens = np.arange(300) % 7
    data = SimpleNamespace(tokens=lambda split: tokens, vocab_size=7)
    row = result_row(Mine(), data, metrics(val_loss=1.5))
    assert row["metric"] == "val nats/token 1.500"
    assert "unigram 1.9" in row["baseline"]
    targets = {"train": np.array([[1.0], [2.0], [9.0]]), "val": np.array([[2.0], [4.0]])}
    data = SimpleNamespace(targets=targets.get)
    row = result_row(Regressor(), data, metrics(val_mae=0.5, val_spearman=0.25))
    assert row == {"metric": "val MAE 0.5, Spearman 0.250", "baseline": "median's MAE 1"}


def test_a_model_without_a_row_shows_its_validation_loss():
    assert result_row(Other(), None, metrics(val_loss=2.0)) == {"metric": "val_loss 2", "baseline": ""}
    assert result_row(Other(), None, {})["metric"] == ""
