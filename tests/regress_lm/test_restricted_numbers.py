"""Restriction of the sampled numbers to the signs and exponents of the training targets."""

import numpy as np
import pytest
import torch

from tests.regress_lm.test_regress_lm_decode import allowed_everywhere, build
from zoo.regress_lm.decoding import enumerate_all, log_prob, sample
from zoo.regress_lm.number_tokenizers import IEEEFloatTokenizer, NormalizedTokenizer, P10Tokenizer
from zoo.regress_lm.special_values import SpecialValues
from zoo.regress_lm.vocabulary import NumberVocabulary

TEXTS = torch.randint(1, 30, (3, 6), generator=torch.Generator().manual_seed(1))
MANY = (-12.0, -0.5, 0.0, 0.003, 1.5, 2.0, 4e5, 7e-8)


def restricted(tokenizer, *columns, temperatures=None):
    """A vocabulary with the signs and exponents of the columns' numbers, and an unrestricted one."""
    full = NumberVocabulary(tokenizer, len(columns))
    magnitudes = full.magnitudes_of(full.encode(np.array(columns).T))
    return NumberVocabulary(tokenizer, len(columns), magnitudes, temperatures), full


def match_one_of(patterns, ids):
    """(...,) whether the numbers (..., L) match one of the patterns."""
    patterns = torch.tensor(patterns)
    return ((patterns == -1) | (patterns == ids.unsqueeze(-2))).all(-1).any(-1)


@pytest.mark.parametrize(
    "tokenizer",
    [
        IEEEFloatTokenizer(digits=2),
        IEEEFloatTokenizer(exponent_digits=2, digits=2),
        P10Tokenizer(2, 12),
        SpecialValues(IEEEFloatTokenizer(digits=1)),
        SpecialValues(P10Tokenizer(1)),
    ],
    ids=["ieee", "ieee-2", "p10", "ieee-special", "p10-special"],
)
def test_only_signs_and_exponents_of_the_training_targets_are_sampled(tokenizer):
    vocabulary, full = restricted(tokenizer, MANY)
    assert vocabulary.unrestricted.count == full.count > vocabulary.count
    model = build(full)
    drawn = sample(model, vocabulary, TEXTS, None, 3000).ids
    assert allowed_everywhere(vocabulary, drawn.flatten(0, 1))
    assert allowed_everywhere(full, drawn.flatten(0, 1))
    [seen] = full.magnitudes_of(full.encode(np.array(MANY)[:, None]))
    assert match_one_of(seen, drawn).all()
    assert not match_one_of(seen, sample(model, full, TEXTS, None, 3000).ids).all()


def test_exponent_sign_and_digit_are_restricted_together():
    vocabulary, _ = restricted(IEEEFloatTokenizer(), (1.5e5, 2e-7, -3.0))
    ids = vocabulary.encode([[1.6e5], [1e-7], [-9.9], [1e7], [1e-5], [3.0], [-1e5]])
    assert [allowed_everywhere(vocabulary, row[None]) for row in ids] == [True] * 3 + [False] * 4
    model = build(vocabulary)
    log_probs = log_prob(model, vocabulary, TEXTS[:1].expand(7, -1), None, ids)
    assert log_probs.isfinite().tolist() == [True] * 3 + [False] * 4
    assert (log_probs[3:] == -torch.inf).all()


def test_each_objective_has_its_own_exponents_and_probabilities_sum_to_1():
    tokenizer = P10Tokenizer(1, 2)
    vocabulary, full = restricted(tokenizer, (1.0, 20.0), (-0.1, 3.0))
    model = build(full)
    ids, log_probs = enumerate_all(model, vocabulary, TEXTS)
    assert len(ids) == vocabulary.count == (10 + 3) * (5 + 4)  # up to 21.9; from -.41 to 3.31
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(3, dtype=torch.float64))
    first, second = vocabulary.decode(ids).T
    assert (first.min(), first.max()) == (0, 20)
    assert (second.min(), second.max()) == (-0.4, 3)
    places = {tuple(row): i for i, row in enumerate(ids.tolist())}
    drawn = sample(model, vocabulary, TEXTS, None, 500)
    for row in range(3):
        expected = log_probs[row, [places[tuple(ids)] for ids in drawn.ids[row].tolist()]]
        torch.testing.assert_close(drawn.log_prob[row], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokenizer", [IEEEFloatTokenizer(digits=2), P10Tokenizer(2)], ids=["ieee", "p10"])
def test_zero_does_not_admit_other_numbers_with_its_exponent(tokenizer):
    vocabulary, full = restricted(tokenizer, (0.0, 1.2e-5, 0.0, 7e-6))
    model = build(full)
    drawn = vocabulary.decode(sample(model, vocabulary, TEXTS, None, 3000).ids)
    assert drawn.min() == 0
    assert 9e-6 < drawn.max() < 1e-4
    assert log_prob(model, vocabulary, TEXTS[:1], None, vocabulary.encode([[0.0]])).isfinite()
    only_zero, _ = restricted(tokenizer, (0.0,))
    assert only_zero.count == 1


def test_normalized_numbers_have_no_exponents_to_restrict():
    vocabulary, full = restricted(NormalizedTokenizer(), (0.1, 0.2))
    assert vocabulary.count == full.count == 1000
