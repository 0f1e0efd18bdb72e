"""JSON: what the reader refuses, and the writer's null for numbers that JSON does not have."""

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.text_formats.json_text import dump_json, parse_json


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "its key 'c' occurs twice"),
        ('{"a": -12.5E-400}', r"the number '-12\.5E-400' in it is too small for a float"),
        ("[" + "9" * 1001 + "]", "an integer in it has 1001 digits, more than 1000"),
        ('{"a": 1', "Expecting ',' delimiter"),
        ("", "Expecting value"),
    ],
    ids=range(8),
)
def test_what_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_large_numbers_do_not_hang():
    assert parse_json("[1e999999999999999, 0e-999999999999999]") == [float("inf"), 0]
    with pytest.raises(ValueError, match="too small for a float"):
        parse_json("[1e-999999999999999]")


def test_numbers_that_are_not_finite_become_null():
    value = {"a": float("nan"), "b": [1.5, float("inf"), (np.float64("-inf"), {"c": None})], "d": "NaN", "e": True}
    assert json.loads(dump_json(value)) == {"a": None, "b": [1.5, None, [None, {"c": None}]], "d": "NaN", "e": True}


WORDS = st.text(max_size=3)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | WORDS
JSON = st.lists(LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(WORDS, LEAVES, max_size=2), max_size=3)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(JSON)
def test_written_values_are_read_back(value):
    def refuse(constant):
        raise AssertionError(constant)

    text = dump_json(value)
    assert parse_json(text) == json.loads(text, parse_constant=refuse)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(JSON, st.integers(0, 200), st.text(max_size=3))
def test_damaged_json_is_a_value_error(value, at, insert):
    text = dump_json(value)
    with contextlib.suppress(ValueError):
        parse_json(text[:at] + insert + text[at + 1 :])


def test_a_hundred_levels_are_read():
    value = parse_json('{"a": ' * 50 + "[" * 50 + "]" * 50 + "}" * 50)
    assert dump_json(value) == '{"a": ' * 50 + "[" * 50 + "]" * 50 + "}" * 50
