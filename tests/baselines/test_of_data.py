"""Baselines that the loggers show, compared with values worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from zoo.baselines import of_data
from zoo.baselines.of_data import baselines_of, naive_bayes_accuracy

TRAINER = SimpleNamespace(num_val_batches=[1], world_size=1)


def model(name):
    return type("Own", (type(name, (), {}),), {})()  # a subclass of a class of that name


def test_regression_has_the_error_of_the_training_median():
    targets = {"train": np.array([[1.0], [2.0], [9.0]]), "val": np.array([[0.0], [3.0]])}
    assert baselines_of(TRAINER, model("Regressor"), SimpleNamespace(targets=targets.get)) == {"mae_median": 1.5}
    huge = {"train": np.array([[1e308]]), "val": np.array([[-1e308]])}
    assert baselines_of(TRAINER, model("Regressor"), SimpleNamespace(targets=huge.get)) == {}


def test_classifier_has_the_most_frequent_class_of_the_training_texts():
    texts = {"train": ["good", "good film", "bad"], "val": ["a good one", "bad film", "bad"]}
    targets = {"train": np.array([[1.0], [1.0], [0.0]]), "val": np.array([[1.0], [0.0], [0.0]])}
    scores = baselines_of(TRAINER, model("TextClassifier"), SimpleNamespace(texts=texts.get, targets=targets.get))
    assert scores == {"accuracy_most_frequent": pytest.approx(1 / 3), "accuracy_bag_of_words": 1.0}


@pytest.mark.parametrize("limit", [1, 3, 0.5])
def test_part_of_the_rows_has_no_baselines(limit):
    data = SimpleNamespace(targets=lambda split: np.array([[1.0], [2.0]]))
    assert baselines_of(SimpleNamespace(limit_val_batches=1.0), model("Regressor"), data) == {"mae_median": 0.5}
    assert baselines_of(SimpleNamespace(limit_val_batches=limit), model("Regressor"), data) == {}


def test_texts_without_words_have_no_bag_of_words():
    assert np.isnan(naive_bayes_accuracy(["", " "], np.array([0, 1]), ["a"], np.array([0])))


def test_language_model_has_n_grams_of_the_scored_tokens_only(monkeypatch):
    tokens = {"train": np.array([0, 0, 0, 1]), "val": np.array([1, 0, 0, 1, 1, 1])}
    text = {"tokens": tokens.get, "vocab_size": 2, "batch_size": 1, "seq_len": 2}
    scores = baselines_of(TRAINER, model("LanguageModel"), SimpleNamespace(**text))
    assert scores["loss_unigram"] == pytest.approx(-np.log(4 / 6))  # of the tokens 0, 0
    assert scores["ppl_unigram"] == pytest.approx(6 / 4)
    assert {"loss_trigram", "ppl_trigram"} <= scores.keys()
    # Windows that overlap: the second one adds a single token, 1.
    scores = baselines_of(
        SimpleNamespace(num_val_batches=[2], world_size=1),
        model("LanguageModel"),
        SimpleNamespace(**text, eval_stride=1),
    )
    assert scores["loss_unigram"] == pytest.approx(-np.log([4 / 6, 4 / 6, 2 / 6]).mean())
    monkeypatch.setattr(of_data, "MOST_TOKENS", 3)  # the unigram model of 0, 0, 0, with one added to each count
    scores = baselines_of(TRAINER, model("LanguageModel"), SimpleNamespace(**text))
    assert scores == {"loss_unigram": pytest.approx(-np.log(4 / 5)), "ppl_unigram": pytest.approx(5 / 4)}


@pytest.mark.parametrize("n_tokens", [0, 1, 2])
def test_a_short_training_text_has_no_trigrams(n_tokens):
    """With --data.val_fraction 1.0 the training split is empty."""
    tokens = {"train": np.zeros(n_tokens, dtype=int), "val": np.array([0, 0, 1])}
    text = {"tokens": tokens.get, "vocab_size": 2, "batch_size": 1, "seq_len": 2}
    scores = baselines_of(TRAINER, model("LanguageModel"), SimpleNamespace(**text))
    assert {*scores} == ({"loss_unigram", "ppl_unigram"} if n_tokens else set())


def test_baselines_of_the_test_split_are_fitted_to_the_rows_as_given():
    rows = {"train": SimpleNamespace(targets=np.array([[1.0], [2.0], [9.0]]))}
    targets = {"train": np.array([[7.0]]), "val": np.array([[0.0]]), "test": np.array([[4.0]])}  # with synthetic rows
    data = SimpleNamespace(targets=targets.get, reader=SimpleNamespace(rows=rows.get))
    assert baselines_of(TRAINER, model("Regressor"), data, "test") == {"mae_median": 2.0}


@pytest.mark.parametrize("data", [{}, {"tokens": 3}])
def test_other_models_and_data_have_no_baselines(data):
    assert baselines_of(TRAINER, model("LanguageModel"), SimpleNamespace(**data)) == {}
    assert baselines_of(TRAINER, model("LightningModule"), SimpleNamespace(**data)) == {}
