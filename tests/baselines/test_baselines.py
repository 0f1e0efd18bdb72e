"""NGram against a slow implementation of its definition; the grid of bag_of_words; marginal_nll."""

from collections import Counter

import numpy as np
import pytest

from zoo.baselines import NGram, bag_of_words, marginal_nll
from zoo.errors import UserError

TEXT = np.random.default_rng(0).integers(0, 5, 400) ** 2 // 4  # 5 tokens, unevenly frequent


def slow_kneser_ney(train, context, word, vocab_size):
    """Interpolated Kneser-Ney, one probability at a time, straight from counts of tuples."""
    tables = {3: Counter(zip(train, train[1:], train[2:], strict=False))}
    tables[2] = Counter(gram[1:] for gram in tables[3])
    tables[1] = Counter(gram[1:] for gram in tables[2])
    p = 1 / vocab_size
    for n in (1, 2, 3):
        if len(context) < n - 1:
            break
        history = tuple(context[len(context) - n + 1 :])
        table = tables[n]
        ones, twos = (sum(c == k for c in table.values()) for k in (1, 2))
        discount = ones / max(ones + 2 * twos, 1) or 0.5
        followers = {gram: c for gram, c in table.items() if gram[:-1] == history}
        if total := sum(followers.values()):
            own = max(followers.get((*history, word), 0) - discount, 0)
            p = (own + discount * len(followers) * p) / total
    return p


def test_kneser_ney_equals_its_definition():
    model = NGram(TEXT, vocab_size=7)
    held_out = np.array([4, 0, 1, 5, 2, 2, 6, 4, 4])
    expected = [slow_kneser_ney(TEXT.tolist(), held_out[max(0, i - 2) : i].tolist(), held_out[i], 7) for i in range(9)]
    np.testing.assert_allclose(model.probabilities(held_out), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("context", [[0, 1], [4, 4], [6, 5]])  # the last context does not occur in TEXT
def test_probabilities_sum_to_one(order, context):
    model = NGram(TEXT, vocab_size=7, order=order)
    total = sum(model.probabilities(np.array([*context, word]))[-1] for word in range(7))
    assert total == pytest.approx(1, abs=1e-12)


def test_longer_context_lowers_the_loss_of_periodic_text():
    text = np.tile([0, 1, 2, 1, 0, 3], 100)
    losses = [NGram(text[:300], 4, order).nll(text[300:]) for order in (1, 2, 3)]
    assert losses[0] > losses[1] > losses[2]


def test_order_beyond_62_bits_is_refused():
    with pytest.raises(UserError, match="62 bits"):
        NGram(TEXT, vocab_size=2**21, order=3)


@pytest.mark.parametrize("kind", ["naive Bayes", "logistic regression"])
def test_bag_of_words_is_chosen_by_held_out_accuracy(kind):
    texts = [f"a {'fine' if i % 2 else 'dull'} film, number {i}" for i in range(40)]
    classes = np.array([i % 2 for i in range(40)])
    model, setting = bag_of_words(kind, texts[:30], classes[:30], (texts[30:], classes[30:]))
    assert model.predict(["very dull", "fine, very fine"]).tolist() == [0, 1]
    assert setting.startswith("words, ")  # of equal settings the first one is chosen


def test_pairs_of_words_separate_texts_of_equal_words():
    texts = ["not good but bad", "not bad but good"] * 20
    classes = np.array([0, 1] * 20)
    model, _ = bag_of_words("logistic regression", texts, classes, (texts, classes))
    assert model.score(texts, classes) == 1


def test_marginal_nll_equals_its_definition():
    train, held_out = np.array([[1, 2], [1, 3], [0, 2]]), np.array([[1, 3], [0, 0]])
    first = [(2 + 1 / 4) / 4, (1 + 1 / 4) / 4]  # one extra row is spread over the 4 tokens
    second = [(1 + 1 / 4) / 3, (0 + 1 / 4) / 2]
    assert marginal_nll(train, held_out, vocab_size=4) == pytest.approx(-np.log([*first, *second]).sum() / 2)
