"""The bounded YAML reader: limits, repeated keys, numbers; any text gives a value or a YAMLError."""

import contextlib

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.text_formats.yaml_text import describe_yaml_error, parse_settings, parse_texts

LAUGHS = "\n".join(["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)])
MERGES = "\n".join(
    ["a0: &a0 {x: 1, y: 1}"] + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 10)]
)


@pytest.mark.parametrize("parse", [parse_settings, parse_texts])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- " * 30_000, " at line 1: it is nested more than 100 levels deep"),
        ("[" * 100_000, " at line 1: it is nested more than 100 levels deep"),
        ("{a: " * 101 + "}" * 101, " at line 1: it is nested more than 100 levels deep"),
        (LAUGHS, " at line 6: its aliases add more than 100000 entries"),
        (MERGES, " at line 6: its aliases add more than 100000 entries"),
        ("a:\n  &a [*a]", " at line 2: the alias *a is inside its own anchor"),
        ("a: 1\nb: 2\n'a': 3", " at line 3: the key 'a' occurs twice"),
        ("a: {b: {c: 1, c: 1}}", " at line 1: the key 'c' occurs twice"),
        ("a: !!python/name:os.system", " at line 1: the tag 'tag:yaml.org,2002:python/name:os.sys... is not accepted"),
        ("a: !!timestamp x", " at line 1: the tag 'tag:yaml.org,2002:timestamp' is not accepted"),
        ("a: 1\0", ": unacceptable character #x0000: control characters are not allowed"),
        ("a: \udcff", ": character 4 is not valid text"),
        ("a: 1\n---\na: 2", " at line 2: but found another document"),
        ("a: *b", " at line 1: found undefined alias"),
    ],
    ids=range(14),
)
def test_what_is_refused(parse, text, reason):
    with pytest.raises(yaml.YAMLError) as error:
        parse(text)
    assert describe_yaml_error(error.value) == reason


def test_long_integers_are_refused_and_long_floats_are_infinite():
    for text in ("9" * 5_000, "0x" + "f" * 5_000, "-" + "9_" * 1001):
        with pytest.raises(yaml.YAMLError, match="digits, more than 1000"):
            parse_settings(f"steps: {text}")
    assert parse_settings("[1e999999999999999, " + "9" * 5_000 + ".0, 1e-999999999999999]") == [float("inf")] * 2 + [0]
    assert parse_texts("steps: " + "9" * 5_000) == {"steps": "9" * 5_000}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("10", 10),
        ("+5", 5),
        ("-0", 0),
        ("1_000", 1000),
        ("0x10", 16),
        ("010", "010"),
        ("0o17", "0o17"),
        ("1:30", "1:30"),
        ("1e3", 1000.0),
        ("1e-3", 0.001),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.5e1", -5.0),
        ("._", "._"),
        ("1e", "1e"),
        ("2001-01-01", "2001-01-01"),
        ("no", False),
        ("True", True),
        ("~", None),
        ("", None),
        ("nan", "nan"),
        ("inf", "inf"),
        (".inf", float("inf")),
        ("\uff11\uff12", "\uff11\uff12"),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("12 ", 12),
    ],
)
def test_types_of_words(word, value):
    got = parse_settings(f"key: {word}")["key"]
    assert got == value
    assert type(got) is type(value)
    assert parse_texts(f"key: {word}")["key"] == word.strip().strip("'").removeprefix("!!str ")


def test_aliases_and_merges_within_the_limits():
    text = "b: &b {x: 1, y: 2}\nc: &c {<<: *b, x: 3}\nd: {<<: *c, z: 1}\ne: [*b, *b]"
    b, c = {"x": 1, "y": 2}, {"x": 3, "y": 2}
    assert parse_settings(text) == {"b": b, "c": c, "d": c | {"z": 1}, "e": [b, b]}


YAML_PIECES = [
    "- ",
    "[",
    "]",
    "{",
    "}",
    ": ",
    ", ",
    "&a ",
    "*a",
    "<<: ",
    "a",
    "b",
    "1e9",
    "9" * 500,
    "no",
    "\n",
    "  ",
    "\t",
    "? ",
    "| ",
    "> ",
    "'",
    '"',
    "\\",
    "!!int ",
    "!x ",
    "%",
    "#",
    "---\n",
    "...",
    "\0",
    "\udc80",
    "\ufeff",
    "\uff10",
    "~",
    "0x_",
    "._",
    "1:2",
    "=",
    "!!binary ",
    "é",
    "\r",
    "\x85",
    "\u2028",
]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(YAML_PIECES) | st.text(max_size=4), max_size=25).map("".join))
def test_any_text_gives_a_value_or_a_yaml_error(text):
    for parse in (parse_settings, parse_texts):
        with contextlib.suppress(yaml.YAMLError):
            parse(text)
