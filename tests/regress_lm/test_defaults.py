"""Default settings of RegressLM from statistics of the data."""

import numpy as np
import pytest

from zoo.regress_lm.defaults import choose_settings, kind_of, shortest_format
from zoo.training.text_statistics import TextStatistics

TABLE = TextStatistics(
    n_rows=300, targets=np.linspace(1, 50, 300)[:, None], characters=80, words=20, numbers=10, content_words=1,
    rare_share=0.0, digits=3, spread=0.25, distinct_numbers=300,
)  # fmt: skip
TEXTS = TABLE._replace(numbers=0.1, content_words=15, rare_share=0.2)
INTEGERS = TABLE._replace(n_rows=2000, numbers=1, content_words=0, words=2, characters=8)


def chosen(statistics, **given):
    names = {name.replace("__", "."): value for name, value in given.items()}
    choices = choose_settings(statistics, names)
    assert all(choice.reason for choice in choices)
    settings = {choice.option: choice.value for choice in choices}
    assert len(settings) == len(choices)
    assert not settings.keys() & names.keys()
    return settings


def test_kinds():
    assert [kind_of(s) for s in (TABLE, TEXTS, INTEGERS)] == ["numbers", "language", "digits"]
    # A table of categories has many words, but no rare ones; a name per row does not make a language.
    assert kind_of(TABLE._replace(numbers=0, content_words=10)) == "numbers"
    assert kind_of(TABLE._replace(content_words=4, rare_share=0.5)) == "numbers"


def test_bytes_read_numbers_that_are_mostly_new():
    few = TABLE._replace(n_rows=48, numbers=1, distinct_numbers=48, single_numbers=0.8)
    assert chosen(few)["data.tokenizer"] == "bytes"
    assert chosen(few._replace(single_numbers=0.1))["data.tokenizer"] == "words"
    assert chosen(few._replace(columns=3))["data.tokenizer"] == "words"  # synthetic rows have more numbers


def test_a_step_of_a_tiny_table_has_all_rows():
    tiny = TABLE._replace(n_rows=2, spread=0.0, targets=np.array([[1.0], [2.0]]))
    assert chosen(tiny)["data.batch_size"] == 2
    assert chosen(tiny._replace(spread=0.3))["data.batch_size"] == 64  # of copies
    assert "data.batch_size" not in chosen(tiny, data__batch_size=64)


def test_a_table_is_read_as_rounded_numbers_with_noise():
    settings = chosen(TABLE)
    assert settings["data.tokenizer"] == "words"
    assert (settings["data.round_digits"], settings["data.power_tokens"]) == (2, True)
    assert chosen(TABLE._replace(distinct_numbers=10, digits=4))["data.round_digits"] == 4  # years
    # Years next to a column of many numbers.
    years = chosen(TABLE._replace(least_digits=4, digits=4))
    assert (years["data.tokenizer"], years["data.round_digits"]) == ("bpe", 4)
    assert 0 < settings["data.jitter"] <= 0.1
    assert settings["data.augment_copies"] > 10
    assert settings["model.optimizer"] == "muon"


def test_small_tables_and_few_texts_are_learned_from_synthetic_rows():
    settings = chosen(TABLE._replace(columns=10))
    assert settings["data.synthetic_rows"] > 10_000
    assert "data.augment_copies" not in settings
    # A wide model with one encoder layer follows the ensemble that labels them.
    assert (settings["model.dim"], settings["model.n_encoder_layers"]) == (128, 1)
    assert chosen(TABLE._replace(columns=10), data__synthetic_rows=0)["model.dim"] == 64
    assert chosen(TABLE._replace(columns=10), model__dim=-1)["trainer.max_steps"] > 0  # refused by the model
    # Few validation rows select no weights.
    assert settings["trainer.val_check_interval"] == settings["trainer.max_steps"]
    for other in (TABLE, TABLE._replace(columns=10, n_rows=20_000), TABLE._replace(columns=10, n_rows=9), INTEGERS):
        assert "data.synthetic_rows" not in chosen(other)
    # Validation rows that are enough for conformal intervals allow labels with less noise.
    assert "data.synthetic_noise" not in settings
    assert chosen(TABLE._replace(columns=10, n_rows=1000))["data.synthetic_noise"] < 0.5
    assert settings["model.lr"] > chosen(TABLE)["model.lr"]
    # Weights that were pretrained on tables need fewer steps and less noise; without synthetic rows nothing changes.
    weights = {"model__weights": "zoo:regress-lm"}
    pretrained = chosen(TABLE._replace(columns=10), **weights)
    assert pretrained["data.synthetic_noise"] < 0.5
    assert pretrained["model.residual_dropout"] == 0
    assert pretrained["trainer.max_steps"] < settings["trainer.max_steps"] / 2
    years = chosen(TABLE._replace(columns=10, distinct_numbers=10, digits=4), **weights, data__tokenizer="words")
    assert years["data.round_digits"] == 4  # also with weights of numbers with two digits
    assert chosen(TEXTS, **weights) == chosen(TEXTS)
    assert chosen(TABLE, **weights) == chosen(TABLE)
    few_words = TABLE._replace(numbers=0, content_words=8)  # that all occur often
    for texts in (TEXTS, TEXTS._replace(columns=3), few_words):
        settings = chosen(texts)
        assert settings["data.synthetic_rows"] > 10_000
        assert "data.synonyms" not in settings
        assert "data.synthetic_rows" not in chosen(texts._replace(n_rows=20_000))
    settings = chosen(TABLE._replace(columns=10), data__synthetic_rows=0)
    assert settings["data.augment_copies"]
    assert "model.temperature" not in settings
    # Labels are averages, also where targets are whole numbers.
    ratings = TABLE._replace(columns=10, targets=np.arange(300)[:, None] % 5 + 1.0)
    assert chosen(ratings)["model.number_digits"] == 3
    # Copies of many rows are learned as well.
    assert 1 <= chosen(TABLE._replace(columns=10, n_rows=4000))["data.augment_copies"] <= 10


def test_a_text_is_read_by_pieces_of_words():
    settings = chosen(TEXTS, data__synthetic_rows=0)
    assert settings["data.tokenizer"] == "bpe"
    assert "data.round_digits" not in settings
    assert "data.jitter" not in settings
    assert settings["data.synonyms"] == "english"


def test_every_digit_of_single_numbers_is_read():
    settings = chosen(INTEGERS)
    assert settings["data.tokenizer"] == "bytes"
    assert not {"data.round_digits", "data.augment_copies", "data.jitter"} & settings.keys()


def test_size_and_steps_follow_the_data():
    sizes = [chosen(TABLE._replace(n_rows=n))["model.dim"] for n in (10, 10_000, 100_000, 1_000_000)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    long = chosen(TABLE._replace(words=500, characters=3000))
    assert 200 <= long["trainer.max_steps"] < chosen(TABLE)["trainer.max_steps"]
    assert long["data.batch_size"] < chosen(TABLE)["data.batch_size"]
    # A step has at most all training rows, also where these have no copies.
    few = {"data__augment_copies": 0, "data__synthetic_rows": 0}
    assert chosen(TEXTS._replace(n_rows=24), **few)["data.batch_size"] == 24
    assert chosen(TEXTS._replace(n_rows=24, characters=3000), **few)["data.batch_size"] == 16
    assert chosen(TEXTS._replace(n_rows=24), **few | {"data__batch_size": 64})["trainer.max_steps"] > 0
    for n_rows in (10, 1_000_000):
        settings = chosen(TABLE._replace(n_rows=n_rows))
        assert settings["model.warmup_steps"] == settings["trainer.max_steps"] // 20
        assert settings["trainer.val_check_interval"] * 5 < settings["trainer.max_steps"]


def test_given_settings_are_not_chosen_and_others_follow_them():
    settings = chosen(TABLE, trainer__max_steps=200, data__batch_size=8)
    assert settings["model.warmup_steps"] == 10
    assert settings["trainer.val_check_interval"] == 34
    settings = chosen(TABLE, trainer__max_epochs=3, data__augment_copies=0, data__batch_size=100)
    assert settings["model.warmup_steps"] == 1
    assert chosen(TABLE._replace(columns=10), trainer__max_epochs=3)["model.warmup_steps"] > 40  # synthetic rows count
    assert not {"trainer.max_steps", "data.jitter", "data.target_jitter"} & settings.keys()
    assert "data.power_tokens" not in chosen(TABLE, data__round_digits=None)
    assert "data.jitter" not in chosen(TABLE, data__features=True)
    assert chosen(TABLE, data__tokenizer="bpe")["data.bpe_vocab_size"]
    assert [chosen(TABLE, model__dim=dim)["model.n_heads"] for dim in (16, 48, 50, 96, 128)] == [1, 3, 1, 6, 8]
    # Lightning accepts neither a share of an epoch nor an epoch's number together with a number of steps of the run.
    for name in ("trainer__val_check_interval", "trainer__check_val_every_n_epoch"):
        assert not {"trainer.val_check_interval", "trainer.check_val_every_n_epoch"} & chosen(TABLE, **{name: 1}).keys()
    assert chosen(TABLE, trainer__val_check_interval=400)["trainer.check_val_every_n_epoch"] is None
    # Sizes that are out of range are refused by the model and the data, not here.
    for name in ("data__batch_size", "model__dim", "model__n_encoder_layers"):
        assert chosen(TABLE, **{name: 0})["trainer.max_steps"]
    assert "model.number_exponent" not in chosen(TABLE, model__number_format="p10")


def test_ratings_and_counts_get_no_noise():
    ratings = TABLE._replace(targets=np.arange(300)[:, None] % 5 + 1.0)
    settings = chosen(ratings)
    assert settings["model.number_digits"] == 1
    assert settings["data.jitter"]
    assert "data.target_jitter" not in settings
    # Copies need a change.
    assert "data.augment_copies" not in chosen(ratings._replace(numbers=0, spread=0))


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (np.arange(1, 6), (1, 1, True)),  # ratings
        (np.arange(-3000, 3001), (4, 1, True)),
        (np.arange(100) / 10 + 1000, (5, 1, True)),
        (np.geomspace(1e-3, 1e3, 1000), (3, 1, False)),
        (1.7e9 + np.arange(400), (10, 1, True)),  # time stamps
        (np.geomspace(1e-30, 1e30, 1000), (3, 2, False)),
        (np.geomspace(1e-200, 1e200, 1000), (3, 3, False)),
        ([0.0], (1, 1, True)),
    ],
)
def test_format_of_numbers_keeps_targets_distinct(targets, expected):
    assert shortest_format(np.asarray(targets, dtype=np.float64)[:, None]) == expected


def test_format_of_numbers_serves_all_objectives():
    targets = np.stack([np.arange(400) + 1.7e9, np.geomspace(1e-30, 1, 400)], axis=1)
    digits, exponent, _ = shortest_format(targets)
    assert digits >= 10
    assert exponent == 2
