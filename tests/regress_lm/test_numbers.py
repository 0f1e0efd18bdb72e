"""Number tokenizers: correct rounding, exact decoding, warnings of clamping; upstream's tokens with truncation."""

import json
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from zoo.regress_lm.number_formats import number_tokenizer
from zoo.regress_lm.number_tokenizers import IEEEFloatTokenizer, NormalizedTokenizer, P10Tokenizer
from zoo.regress_lm.special_values import SpecialValues
from zoo.regress_lm.vocabulary import NumberVocabulary

# Upstream's tokens for some numbers, written by make_golden.py.
GOLDEN = json.loads((Path(__file__).parent / "golden_numbers.json").read_text())
UPSTREAM = {
    "ieee": IEEEFloatTokenizer(truncate=True),
    "ieee 10 2 6": IEEEFloatTokenizer(10, 2, 6, truncate=True),
    "ieee 3 2 5": IEEEFloatTokenizer(3, 2, 5, truncate=True),
    "p10": P10Tokenizer(truncate=True),
    "p10 3 4": P10Tokenizer(3, 4, truncate=True),
    "normalized": NormalizedTokenizer(truncate=True),
    "normalized 16 2": NormalizedTokenizer(16, 2, truncate=True),
}
ALL = [
    IEEEFloatTokenizer(),
    IEEEFloatTokenizer(base=2, exponent_digits=4, digits=11),
    P10Tokenizer(),
    NormalizedTokenizer(),
    NormalizedTokenizer(16, 3),
    SpecialValues(P10Tokenizer()),
    SpecialValues(NormalizedTokenizer(length=1)),
]
NAMES = [f"{type(t).__name__}-{t.num_tokens}" for t in ALL]


def joined(tokenizer, value):
    return "".join(tokenizer.to_tokens(value))


@pytest.mark.parametrize("name", GOLDEN)
def test_truncated_tokens_match_upstream(name):
    tokenizer, golden = UPSTREAM[name], GOLDEN[name]
    ids, _ = tokenizer.tokenize(np.array(golden["values"]))
    assert ["".join(tokenizer.tokens[i] for i in row) for row in ids] == golden["tokens"]


def test_documented_examples():
    ieee, p10 = IEEEFloatTokenizer(), P10Tokenizer()
    assert joined(ieee, -72.5) == "<-><+><1><7><2><5><0>"
    assert joined(ieee, 1e-3) == "<+><-><3><1><0><0><0>"
    assert joined(p10, -72.5) == "<-><7><2><5><0><E-2>"
    assert joined(p10, 1e-3) == "<+><1><0><0><0><E-6>"
    assert joined(NormalizedTokenizer(), 0.523) == "<5><2><3>"
    assert joined(IEEEFloatTokenizer(truncate=True), 0.57) == "<+><-><1><5><6><9><9>"
    for tokenizer in (ieee, p10, NormalizedTokenizer()):
        assert tokenizer.from_tokens(tokenizer.to_tokens(0.57)) == 0.57


@pytest.mark.parametrize("digits", [1, 4, 7, 15])
def test_rounding_equals_exact_arithmetic(digits):
    """1e5 numbers, with ties, compared with Python's formatting, which rounds the exact value half to even."""
    rng = np.random.default_rng(digits)
    values = rng.normal(size=100_000) * 10.0 ** rng.uniform(-9, 9, 100_000)
    values[:20_000] = rng.integers(-(10**6), 10**6, 20_000) * 2.0 ** rng.integers(-9, 3, 20_000)
    expected = np.array([float(f"{v:.{digits - 1}e}") for v in values])
    for tokenizer in (IEEEFloatTokenizer(exponent_digits=2, digits=digits), P10Tokenizer(digits, exponent=30)):
        assert np.array_equal(tokenizer.decode(tokenizer.encode(values)), expected)


@pytest.mark.parametrize(("base", "digits"), [(2, 11), (3, 8), (16, 5)])
def test_other_bases_have_an_error_of_half_a_unit_at_most(base, digits):
    rng = np.random.default_rng(0)
    values = rng.normal(size=500) * 10.0 ** rng.uniform(-6, 6, 500)
    tokenizer = IEEEFloatTokenizer(base, 5, digits)
    for value, read in zip(values, tokenizer.decode(tokenizer.encode(values)), strict=True):
        exponent = 0
        while Fraction(base) ** (exponent + 1) <= abs(Fraction(value)):
            exponent += 1
        while Fraction(base) ** exponent > abs(Fraction(value)):
            exponent -= 1
        half = Fraction(base) ** (exponent - digits + 1) / 2
        rounding_of_the_double = Fraction(np.spacing(abs(read))) / 2
        assert abs(Fraction(read) - Fraction(value)) <= half + rounding_of_the_double


def test_decimals_of_as_many_digits_are_reproduced():
    rng = np.random.default_rng(1)
    for digits in (4, 9, 15):
        mantissas, powers = rng.integers(-(10**digits), 10**digits, 3000), rng.integers(-8, 9, 3000)
        values = np.array([float(Decimal(int(m)).scaleb(int(p))) for m, p in zip(mantissas, powers, strict=True)])
        for tokenizer in (IEEEFloatTokenizer(exponent_digits=2, digits=digits), P10Tokenizer(digits, 25)):
            assert np.array_equal(tokenizer.decode(tokenizer.encode(values)), values)
    every = np.arange(1000) / 1000
    assert np.array_equal(NormalizedTokenizer().decode(NormalizedTokenizer().encode(every)), every)


def test_small_numbers_lose_digits_one_by_one():
    ieee = IEEEFloatTokenizer()
    for value, read in ((1.2344e-9, 1.234e-9), (1.234e-10, 1.23e-10), (5e-12, 5e-12), (5.1e-13, 1e-12), (4e-13, 0.0)):
        assert ieee.from_tokens(ieee.to_tokens(value)) == read
        assert ieee.from_tokens(ieee.to_tokens(-value)) == -read
    p10 = P10Tokenizer()
    for value, read in ((1.0004e-7, 1e-7), (0.9e-7, 1e-7), (0.51e-7, 1e-7), (0.49e-7, 0.0), (5e-324, 0.0)):
        assert p10.from_tokens(p10.to_tokens(value)) == read


@pytest.mark.parametrize(
    ("tokenizer", "inside", "beyond"),
    [
        (IEEEFloatTokenizer(), [9.9994e9, -9.999e9, 1e-30, 0.0], [9.9996e9, -1e10, 1e300]),
        (IEEEFloatTokenizer(truncate=True), [9.999e9, -9.999e9, 1e-30, 0.0], [9.9996e9, -1e10, 1e300]),
        (P10Tokenizer(), [9.9994e13, -9.999e13], [9.9996e13, -1e14]),
        (NormalizedTokenizer(), [0.9994, 0.0], [1.0, 1.5, -0.01]),
        (SpecialValues(IEEEFloatTokenizer()), [np.nan, np.inf, 3.0], [1e10]),
    ],
    ids=["ieee", "truncated", "p10", "normalized", "special"],
)
def test_clamping_warns(tokenizer, inside, beyond):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.encode(inside)
    with pytest.warns(UserWarning, match=rf"^{len(beyond)} of {len(inside + beyond)} numbers are beyond .* clamped"):
        ids = tokenizer.encode(inside + beyond)
    assert tokenizer.encode_clamped(inside + beyond)[1].tolist() == [False] * len(inside) + [True] * len(beyond)
    low, high = tokenizer.limits
    assert tokenizer.decode(ids)[len(inside) :].tolist() == [high if value > 0.5 else low for value in beyond]


def test_range_may_exceed_that_of_doubles():
    tokenizer = IEEEFloatTokenizer(exponent_digits=3)
    values = np.array([5e-324, 1e-310, 2.5e-300, np.finfo(float).max])
    # The largest double would round up to infinity.
    assert tokenizer.limits == (-1.797e308, 1.797e308)
    with pytest.warns(UserWarning, match="1 of 4 numbers are beyond the range"):
        ids = tokenizer.encode(values)
    assert tokenizer.decode(ids).tolist() == [5e-324, 1e-310, 2.5e-300, 1.797e308]
    assert tokenizer.from_tokens(["<+>", "<->", *["<9>"] * 7]) == 0.0


def test_invalid_numbers_tokens_and_sizes_are_refused():
    for value in (np.nan, np.inf, -np.inf):
        for tokenizer in (IEEEFloatTokenizer(), P10Tokenizer(), NormalizedTokenizer()):
            with pytest.raises(ValueError, match="SpecialValues"):
                tokenizer.encode([1.0, value])
    for tokens in (["<+>"], ["<1>"] * 7, ["<+>", "<+>", "<x>", *["<1>"] * 4]):
        with pytest.raises(ValueError, match="token"):
            IEEEFloatTokenizer().from_tokens(tokens)
    for make, word in (
        (lambda: IEEEFloatTokenizer(base=1), "base"),
        (lambda: P10Tokenizer(digits=16), "double holds"),
        (lambda: number_tokenizer("roman"), "ieee, p10, normalized"),
        (lambda: number_tokenizer("normalized", exponent=2), "no exponent"),
    ):
        with pytest.raises(ValueError, match=word):
            make()


def test_special_values_repeat_their_token():
    tokenizer = SpecialValues(P10Tokenizer(1, 2))
    assert tokenizer.to_tokens(np.nan) == ["<NAN>"] * 3
    values = np.array([[np.nan, np.inf], [-np.inf, 100.0]])
    ids = tokenizer.encode(values)
    assert ids.shape == (2, 2, 3)
    assert np.array_equal(tokenizer.decode(ids), values, equal_nan=True)
    assert np.isnan(tokenizer.from_tokens(["<INVALID>"] * 3))
    for tokens in (["<NAN>", "<NAN>", "<INF>"], ["<NAN>", "<1>", "<E0>"], ["<+>", "<NAN>", "<NAN>"]):
        with pytest.raises(ValueError, match="cannot be"):
            tokenizer.from_tokens(tokens)


@pytest.mark.parametrize("tokenizer", ALL, ids=NAMES)
def test_grammar_allows_encoded_numbers(tokenizer):
    rng = np.random.default_rng(0)
    low, high = np.clip(tokenizer.limits, -1e6, 1e6)
    values = rng.uniform(low, high, (40, 3))
    vocabulary = NumberVocabulary(tokenizer, 3)
    ids = vocabulary.encode(values)
    assert ids.shape == (40, vocabulary.length)
    assert np.array_equal(vocabulary.decode(ids), tokenizer.decode(tokenizer.encode(values)))
    assert [vocabulary.tokens[i] for i in ids[0]] == [t for v in values[0] for t in tokenizer.to_tokens(v)]
    for row in ids.tolist():
        state = 0
        for token in row:
            assert vocabulary.automaton.allowed[state, token]
            state = int(vocabulary.automaton.next_state[state, token])
        assert state == 0
    assert vocabulary.automaton.allowed.any(1).all()


def test_vocabulary_ids_match_upstream_and_sequences_are_counted():
    ieee = NumberVocabulary(IEEEFloatTokenizer())
    assert ieee.tokens == ["<pad>", "<+>", "<->", *(f"<{i}>" for i in range(10))]
    assert (ieee.size, ieee.length, ieee.count) == (13, 7, 400_000)
    assert (NumberVocabulary(P10Tokenizer()).size, NumberVocabulary(P10Tokenizer()).count) == (34, 420_000)
    assert NumberVocabulary(SpecialValues(NormalizedTokenizer()), 2).count == 1004**2
    assert NumberVocabulary(SpecialValues(NormalizedTokenizer(length=1))).count == 14
    with pytest.raises(ValueError, match="2 numbers"):
        NumberVocabulary(IEEEFloatTokenizer(), 2).encode(np.zeros((4, 3)))
