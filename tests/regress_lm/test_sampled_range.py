"""Sampled numbers are within the range of the training targets, extended by 10% on each side."""

import itertools
import math

import numpy as np
import pytest
import torch

from tests.regress_lm.test_regress_lm_decode import build
from tests.regress_lm.test_regress_lm_module import QUIET, fit
from tests.regress_lm.test_restricted_numbers import TEXTS, match_one_of, restricted
from zoo.cli.command_line import ZooCLI
from zoo.regress_lm import ExampleInput, RegressLM
from zoo.regress_lm.automaton import between
from zoo.regress_lm.decoding import enumerate_all, log_prob, sample
from zoo.regress_lm.number_tokenizers import IEEEFloatTokenizer, P10Tokenizer
from zoo.regress_lm.special_values import SpecialValues
from zoo.regress_lm.vocabulary import extended_range

RATINGS = tuple(float(i) for i in range(1, 11))
TOKENIZERS = {
    "ieee": IEEEFloatTokenizer(digits=2),
    "ieee-base-12": IEEEFloatTokenizer(base=12, digits=2),  # the tokens' order is not the digits'
    "p10": P10Tokenizer(2, 3),
    "special": SpecialValues(IEEEFloatTokenizer(digits=2)),
}


def test_digits_between_two_bounds_are_matched_and_no_others():
    for base, n in ((2, 4), (3, 3), (10, 2)):
        everything = list(itertools.product(range(base), repeat=n))  # in increasing order
        numbers = torch.tensor(everything)
        for low in range(0, len(everything), 3):
            for high in range(low, len(everything), 5):
                patterns = between(everything[low], everything[high], base)
                assert match_one_of(patterns, numbers).nonzero().flatten().tolist() == [*range(low, high + 1)]
                assert len(patterns) <= 2 * base * n


def test_range_is_extended_by_a_tenth_of_its_length():
    assert extended_range(np.array(RATINGS)) == pytest.approx((0.1, 10.9))
    assert extended_range(np.array([-30.0, -10.0])) == pytest.approx((-32, -8))
    assert extended_range(np.array([-5.0, -5.0])) == pytest.approx((-5.5, -4.5))
    assert extended_range(np.array([0.0])) == extended_range(np.array([])) == (0, 0)
    low, high = extended_range(np.array([-1.7e308, 1.7e308]))
    assert math.isfinite(low)
    assert math.isfinite(high)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    ("targets", "low", "high"),
    [
        (RATINGS, 0.1, 10.9),
        ((-30.0, -10.0, -12.0), -32, -8),
        ((-3.0, 0.0, 20.0), -5.3, 22.3),
        ((-70.0, -1.0, 0.5, 2.0), -77.2, 9.2),
        ((7.0,), 6.3, 7.7),
    ],
)
def test_exactly_the_numbers_in_the_extended_range_have_a_probability(name, targets, low, high):
    vocabulary, full = restricted(TOKENIZERS[name], targets)
    model = build(full)
    ids, log_probs = enumerate_all(model, vocabulary, TEXTS[:1])
    assert log_probs.exp().sum().item() == pytest.approx(1)
    # All numbers, without a restriction: those with a sign and exponent of the targets and within the range remain.
    every, _ = enumerate_all(model, full, TEXTS[:1])
    every = every[torch.from_numpy(np.isfinite(full.decode(every)[:, 0]))]
    values = full.decode(every)[:, 0]
    tokens = full.encode(np.array(targets)[:, None])
    is_magnitude = torch.zeros(full.length, dtype=torch.bool)
    is_magnitude[list(full.tokenizer.magnitude_states)] = True
    nonzero = tokens[torch.tensor(targets) != 0].where(is_magnitude, -1)
    expected = match_one_of(nonzero.tolist(), every) & torch.from_numpy((low <= values) & (values <= high))
    expected |= match_one_of(tokens.tolist(), every)
    assert {tuple(row) for row in ids.tolist()} == {tuple(row) for row in every[expected].tolist()}


def test_ratings_are_sampled_up_to_10_9():
    for tokenizer in (IEEEFloatTokenizer(), P10Tokenizer()):
        vocabulary, full = restricted(tokenizer, RATINGS)
        # Mantissas 100 to 9999 in units of .001, and 10 to 1090 in units of .01.
        assert vocabulary.count == 9900 + 1081
        model = build(full)
        drawn = vocabulary.decode(sample(model, vocabulary, TEXTS, None, 3000).ids)
        assert drawn.min() >= 0.1
        assert drawn.max() <= 10.9
        assert vocabulary.decode(sample(model, full, TEXTS, None, 3000).ids).max() > 1000
        ids = vocabulary.encode([[10.9], [1.0], [5.55], [11.0], [0.09], [89.0], [-1.0]])
        log_probs = log_prob(model, vocabulary, TEXTS[:1].expand(7, -1), None, ids)
        assert log_probs.isfinite().tolist() == [True] * 3 + [False] * 4


def test_each_objective_has_its_own_range_and_special_values_stay():
    tokenizer = SpecialValues(IEEEFloatTokenizer(digits=3))
    vocabulary, full = restricted(tokenizer, (1.0, 10.0, math.nan, 4.0), (-300.0, -100.0, -200.0, math.inf))
    drawn = vocabulary.decode(sample(build(full), vocabulary, TEXTS, None, 5000).ids)
    first, second = drawn.reshape(-1, 2).T
    assert np.isnan(first).any()
    assert np.isposinf(second).any()
    assert not np.isinf(first).any()
    assert not np.isnan(second).any()
    assert np.nanmin(first) >= 0.1
    assert np.nanmax(first) <= 10.9
    finite = second[np.isfinite(second)]
    assert finite.min() >= -320
    assert finite.max() <= -80


def test_range_is_kept_by_checkpoints_and_resumed_runs(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("train", "valid"):
        rows = "".join(f"x = {i},{i % 10 + 1},{-100 * (i % 3 + 1)}\n" for i in range(40))
        (tmp_path / "data" / f"{name}.csv").write_text("text,a,b\n" + rows)
    columns = ["--data.text_column=text", "--data.target_columns=[a,b]"]
    run, inputs = tmp_path / "run", [ExampleInput(f"x = {i}") for i in range(5)]
    first = fit(tmp_path / "data", run, *columns, "--model.calibration=none").model

    def extremes(**options):
        model = RegressLM.load_from_checkpoint(run / "last.ckpt", weights_only=True, **options).eval()
        drawn = np.concatenate(model.sample(inputs, 400, seed=0))
        return drawn.min(0), drawn.max(0)

    def assert_in_range():
        low, high = extremes()
        assert (low >= [0.1, -320]).all()
        assert (high <= [10.9, -80]).all()

    assert_in_range()
    assert extremes(unseen_exponents=True)[1].max() > 1000
    resumed = ZooCLI(["fit", f"--ckpt_path={run / 'last.ckpt'}", "--trainer.max_steps=6", *QUIET]).model
    assert resumed.magnitudes == first.magnitudes
    assert_in_range()
    # An earlier version stored signs and exponents without bounds of the digits: they have their meaning.
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    plus, minus, digit = (first.vocabulary.tokens.index(token) for token in ("<+>", "<->", "<0>"))
    rest = (-1,) * 4
    checkpoint["calibration"]["magnitudes"] = [
        [(plus, plus, digit, *rest), (plus, plus, digit + 1, *rest)],
        [(minus, plus, digit + 2, *rest)],
    ]
    checkpoint.pop("zoo_digest", None)
    torch.save(checkpoint, run / "last.ckpt")
    low, high = extremes()
    assert high[0] > 50
    assert -1000 < low[1] < -500
