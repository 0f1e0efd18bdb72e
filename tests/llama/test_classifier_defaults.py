"""Default settings of LlamaClassifier from statistics of texts and classes."""

import numpy as np
import pytest

from zoo.baselines.bow_choice import BowTrial
from zoo.datamodules import Reviews
from zoo.errors import UserError
from zoo.llama import LlamaClassifier
from zoo.llama.classifier_defaults import bow_trials, choose_settings
from zoo.tokenizers import load_tokenizer
from zoo.training.text_statistics import TextStatistics

QUESTIONS = TextStatistics(
    n_rows=5000, targets=np.arange(5000)[:, None] % 6, characters=50, words=10, numbers=0.1, content_words=9,
    rare_share=0.3, digits=2, spread=0.0,
)  # fmt: skip
TRIALS = [
    BowTrial("words_and_chars", 30.0, 0.5, 0.85), BowTrial("words_and_chars", 10.0, 0.51, 0.84),
    BowTrial("tfidf", 10.0, 0.55, 0.83),
]  # fmt: skip


def chosen(statistics=QUESTIONS, trials=TRIALS, **given):
    names = {name.replace("__", "."): value for name, value in given.items()}
    choices = choose_settings(statistics, trials, names)
    assert all(choice.reason for choice in choices)
    settings = {choice.option: choice.value for choice in choices}
    assert len(settings) == len(choices)
    assert not settings.keys() & names.keys()
    return settings


def test_the_best_bag_of_words_is_used_with_its_penalty():
    settings = chosen()
    assert (settings["model.bow_features"], settings["model.bow_C"]) == ("words_and_chars", 30.0)
    assert (settings["model.bow_rows"], settings["model.fit_scales"]) == ("all", True)
    assert "model.bow_C" not in chosen(trials=[BowTrial("naive_bayes", 10.0, 0.4, 0.9), *TRIALS])
    assert not [name for name in chosen(trials=[]) if name.startswith("model.bow")]


def test_size_and_steps_follow_the_data():
    sizes = [chosen(QUESTIONS._replace(n_rows=n))["model.dim"] for n in (10, 10_000, 100_000, 1_000_000)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    settings = chosen()
    epochs = settings["trainer.max_steps"] * settings["data.batch_size"] / 5000
    assert 4 < epochs < 8
    assert settings["model.warmup_steps"] == settings["trainer.max_steps"] // 20
    assert settings["trainer.val_check_interval"] * 9 < settings["trainer.max_steps"]
    long = chosen(QUESTIONS._replace(characters=4000, words=700))
    assert (long["data.max_input_len"], long["model.max_seq_len"]) == (512, 512)
    assert long["trainer.max_steps"] < settings["trainer.max_steps"]
    assert chosen(QUESTIONS._replace(n_rows=5))["data.batch_size"] == 5


def test_given_settings_are_not_chosen_and_others_follow_them():
    settings = chosen(trainer__max_steps=200, data__batch_size=8, data__tokenizer="words", model__dim=96)
    assert (settings["model.warmup_steps"], settings["trainer.val_check_interval"]) == (10, 20)
    assert settings["model.n_heads"] == 6
    assert "data.bpe_vocab_size" not in settings
    assert chosen(data__max_input_len=100)["model.max_seq_len"] == 100
    assert chosen(model__max_seq_len=40)["data.max_input_len"] == 40
    assert "trainer.max_steps" not in chosen(trainer__max_epochs=3)
    for name in ("trainer__val_check_interval", "trainer__check_val_every_n_epoch"):
        assert not {"trainer.val_check_interval", "trainer.check_val_every_n_epoch"} & chosen(**{name: 1}).keys()
    # Pretrained weights have their sizes and their tokenizer.
    tuned = chosen(model__weights="stories15M.pt")
    assert not {"model.dim", "model.n_layers", "model.max_seq_len", "data.tokenizer"} & tuned.keys()
    # Sizes that are out of range are refused by the model and the data, not here.
    for name in ("data__batch_size", "model__dim", "model__n_layers", "data__max_input_len"):
        assert chosen(**{name: 0})["trainer.max_steps"]


def test_bags_are_compared_unless_the_command_decides():
    texts, targets = [f"{'good' if i % 2 else 'bad'} film" for i in range(40)], np.arange(40) % 2
    assert {trial.kind for trial in bow_trials(texts, targets, 2, {})} == {
        "tfidf", "naive_bayes", "chars", "words_and_chars",
    }  # fmt: skip
    assert {trial.kind for trial in bow_trials(texts, targets, 2, {"model.bow_features": "chars"})} == {"chars"}
    assert bow_trials(texts, targets, 2, {"model.bow_features": None}) == []
    assert bow_trials(texts[:5], targets[:5], 2, {}) == []
    assert [trial.kind for trial in bow_trials(texts, targets, 2, {"budget": 0.0})] == ["naive_bayes"]


def test_from_data_builds_model_and_data_with_the_settings(tmp_path, monkeypatch):
    rows = "".join(f"a {'good' if i % 2 else 'bad'} film number {i},{'yes' if i % 2 else 'no'}\n" for i in range(60))
    (tmp_path / "rows.csv").write_text(f"sentence,liked\n{rows}")
    given = {"model.dim": 32, "trainer.max_steps": 5}
    model, data, trainer = LlamaClassifier.from_data(Reviews(str(tmp_path / "rows.csv"), stratified=True), given)
    assert model.label_names == ["no", "yes"]
    assert model.hparams["dim"] == 32
    assert trainer["max_steps"] == 5
    assert data.hparams["tokenizer"] == "bpe"
    assert data.hparams["stratified"]
    assert model.model.config.vocab_size == data.vocab_size
    model.check_data(data)
    with pytest.raises(UserError, match="'dim' is not a setting of model, data, trainer or checkpoint"):
        LlamaClassifier.from_data(Reviews(str(tmp_path / "rows.csv")), {"dim": 3})
    # A misspelt setting is refused before bags of words are compared.
    for setting, message in (
        ({"model.dimm": 128}, "LlamaClassifier has no argument 'dimm'; did you mean dim"),
        ({"data.tokeniser": "bpe"}, "Reviews has no argument 'tokeniser'; did you mean tokenizer"),
        ({"trainer.max_step": 5}, "Trainer has no argument 'max_step'; did you mean max_steps"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("zoo.llama.classifier.bow_trials", lambda *_: pytest.fail("compared"))
            with pytest.raises(UserError, match=message):
                LlamaClassifier.from_data(Reviews(str(tmp_path / "rows.csv")), setting)
    # Pretrained weights bring their tokenizer.
    given = {"model.weights": "zoo:llama-wikitext2", "model.bow_features": None}
    model, data, _ = LlamaClassifier.from_data(Reviews(str(tmp_path / "rows.csv")), given)
    assert data.hparams["tokenizer"] == "zoo:llama-wikitext2"
    assert model.tokenizer.fingerprint == load_tokenizer("zoo:llama-wikitext2").fingerprint
    with pytest.raises(UserError, match="has no texts with labels"):
        LlamaClassifier.choose_settings(object(), {})


def test_a_column_of_different_values_is_no_column_of_classes(tmp_path):
    rows = "".join(f"film {i},{i / 7}\n" for i in range(60))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    with pytest.raises(UserError, match=r"60 different labels .* for 48 training rows: set --data.label_column"):
        LlamaClassifier.choose_settings(Reviews(str(tmp_path / "rows.csv")), {})
