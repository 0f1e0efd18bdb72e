"""Choice of a bag of words by cross-validation."""

import numpy as np

from zoo.baselines.bow_choice import MOST_ROWS, affordable_kinds, compare_bow

N = 120


def test_characters_win_where_words_are_new_and_their_endings_tell():
    texts = [f"{chr(97 + i % 26)}{i}{'ing' if i % 2 else 'ed'}" for i in range(N)]
    best = compare_bow(texts, np.arange(N) % 2, 2)[0]
    assert best.kind in ("chars", "words_and_chars")
    assert best.accuracy == 1


def test_words_win_where_characters_mislead():
    rng = np.random.default_rng(0)
    # The order of two words tells, which pairs of words see and characters within words do not.
    texts = [f"{'not good' if i % 2 else 'good not'} {' '.join(rng.choice(list('xyz'), 4))}" for i in range(N)]
    trials = compare_bow(texts, np.arange(N) % 2, 2)
    accuracy = {trial.kind: trial.accuracy for trial in trials}
    assert trials[0].kind in ("tfidf", "naive_bayes", "words_and_chars")
    assert accuracy["tfidf"] > 0.95
    assert accuracy["chars"] < 0.8
    assert [trial.loss for trial in trials] == sorted(trial.loss for trial in trials)


def test_held_out_loss_of_noise_is_that_of_no_information():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), 5)) for _ in range(600)]
    best = compare_bow(texts, rng.integers(0, 2, 600), 2)[0]
    assert np.log(2) - 0.01 < best.loss < np.log(2) + 0.02


def test_a_sample_of_many_rows_and_classes_without_rows():
    texts = [f"word{i % 3}" for i in range(2 * MOST_ROWS)]
    trials = compare_bow(texts, np.arange(2 * MOST_ROWS) % 3, 5, ["tfidf"])
    assert {trial.kind for trial in trials} == {"tfidf"}
    assert len({trial.C for trial in trials}) > 2
    assert trials[0].accuracy == 1


def test_the_penalty_is_followed_in_the_direction_in_which_the_loss_falls():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(40)]
    texts = [" ".join(rng.choice(words, 6)) for _ in range(300)]
    tells = np.array(["w1 " in f"{text} " for text in texts]).astype(int)
    clear = compare_bow(texts, tells, 2, ["tfidf"])
    assert {30.0, 100.0} < {trial.C for trial in clear}
    assert clear[0].C >= 100
    noise = compare_bow(texts, rng.integers(0, 2, 300), 2, ["tfidf"])
    assert sorted(trial.C for trial in noise)[:2] == [1.0, 3.0]
    assert noise[0].C <= 3
    # The fit stops at the first penalty that is worse.
    for trials in (clear, noise):
        assert len({trial.C for trial in trials}) == len(trials)
        assert [trial.loss for trial in trials] == sorted(trial.loss for trial in trials)


def test_without_time_the_first_kind_is_taken_as_it_is():
    texts = [f"{'good' if i % 2 else 'bad'} film" for i in range(N)]
    [trial] = compare_bow(texts, np.arange(N) % 2, 2, seconds=0)
    assert trial.kind == "naive_bayes"
    [trial] = compare_bow(texts, np.arange(N) % 2, 2, ["chars"], seconds=0)
    assert (trial.kind, trial.C) == ("chars", 10)


def test_a_kind_whose_fit_would_take_too_long_is_left_out(monkeypatch):
    texts = [f"{'good' if i % 2 else 'bad'} film" for i in range(N)]
    monkeypatch.setattr("zoo.baselines.bow_choice.FIT", 1e9)
    [trial] = compare_bow(texts, np.arange(N) % 2, 2, seconds=1000)
    assert trial.kind == "naive_bayes"


def test_kinds_follow_the_cost():
    assert affordable_kinds(1_000_000, 2) == ["naive_bayes", "tfidf", "chars", "words_and_chars"]
    assert set(affordable_kinds(10_000_000, 4)) == {"naive_bayes", "tfidf"}
    assert affordable_kinds(10**9, 4) == ["naive_bayes"]
