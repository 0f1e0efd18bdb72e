"""Augmented copies: reproducible, numbers equal in value, and one-sentence errors for unusable files."""

import re
from decimal import Decimal
from pathlib import Path
from random import Random

import numpy as np
import pytest
import yaml

from zoo.datamodules import augment
from zoo.datamodules.augment import Augmentation, number_forms

NUMBERS = ["1000", "-1000", "0", "0.07", "-12.50", "1234567.891", "1e-3", "6.02E23", "007", "+3", ".5", "99999", "1e99"]
_WRITTEN = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+|)(?:\.\d+)?(?:[eE][-+]?\d+)?")


def parsed(form: str) -> Decimal:
    assert _WRITTEN.fullmatch(form), form
    return Decimal(form.replace(",", ""))


@pytest.mark.parametrize("number", NUMBERS)
def test_number_forms_are_equal_in_value(number: str):
    forms = number_forms(number)
    assert all(parsed(form) == Decimal(number) for form in forms)
    assert number not in forms
    assert not any("," in form for form in number_forms(number, thousands=False))


def test_number_forms_of_a_thousand():
    assert set(number_forms("1000")) == {"1,000", "1e3", "1000.0"}
    assert number_forms("1" * 40) == []


def test_random_numbers_in_a_text_keep_their_values():
    change, random = Augmentation(None, None, number_formats=True), Random(0)
    changed = 0
    for _ in range(500):
        values = [round(random.uniform(-1e6, 1e6), random.randint(0, 4)) for _ in range(3)]
        text = "from {} to {} or {}.".format(*(repr(v).removesuffix(".0") for v in values))
        copy = change(text, random)
        changed += copy != text
        numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?", copy)
        assert [float(number.replace(",", "")) for number in numbers] == values
    assert changed == 500


def test_parts_of_words_and_versions_are_not_numbers():
    change = Augmentation(None, None, number_formats=True)
    for text in ("X1 is 3x as fast on GPT2", "at 1.2.3", "1,000 and 24,96,3000"):
        assert {change(text, Random(seed)) for seed in range(20)} == {text}
    assert not any("1,000" in change('{"a": 1000, "b": 2}', Random(seed)) for seed in range(30))


def test_synonyms_keep_capitals_and_replace_whole_words(tmp_path):
    file = tmp_path / "words.yaml"
    file.write_text("profit: [gain]\nno: [zero]\nfell: [sank, 'went down']\n")
    change = Augmentation(str(file), None, False)
    copies = {change("Profit fell; PROFIT, profitable. No!", Random(seed)) for seed in range(200)}
    assert "Gain sank; GAIN, profitable. Zero!" in copies
    assert "Gain went down; GAIN, profitable. Zero!" in copies
    assert "Profit fell; PROFIT, profitable. No!" not in copies  # at least one word is replaced
    assert change("nothing here", Random(0)) == "nothing here"


def test_background_sentence_is_added_before_or_after(tmp_path):
    file = tmp_path / "background.txt"
    file.write_text("It rained.\n\nMarkets were calm.\n")
    change = Augmentation(None, str(file), False)
    copies = {change("Up 3 %.", Random(seed)) for seed in range(50)}
    sentences = ("It rained.", "Markets were calm.")
    assert copies == {f"{s} Up 3 %." for s in sentences} | {f"Up 3 %. {s}" for s in sentences}


def test_copy_is_a_function_of_the_seed():
    change = Augmentation("english", None, True)
    text = "Shares rose 1000 points after the company announced earnings of 2.5 million."
    assert change(text, Random(3)) == change(text, Random(3)) != text
    assert len({change(text, Random(seed)) for seed in range(20)}) > 10


def test_included_synonyms_are_sorted_and_valid():
    words = yaml.load(Path(augment.__file__).with_name("synonyms.yaml").read_text(), yaml.BaseLoader)
    assert len(words) > 60
    assert list(words) == sorted(words)
    for word, others in words.items():
        assert augment._WORD.fullmatch(word), word
        assert word not in others
        assert len(set(others)) == len(others)


BAD = {
    "no list": ("synonyms", b"good: fine\n", "the synonyms of 'good' are not a list of words"),
    "no mapping": ("synonyms", b"- good\n", "has no synonyms: it must map each word"),
    "no YAML": ("synonyms", b"good: [fine\n", "is not valid YAML"),
    "no UTF-8": ("background", b"caf\xe9\n", "is not UTF-8 text: byte 0xe9 at offset 3"),
    "empty": ("background", b"\n", "is empty: it must have one sentence"),
    "missing": ("background", None, "there is no file .*words: set --data.background to an existing file"),
}


@pytest.mark.parametrize("name", BAD)
def test_unusable_file_gives_a_one_sentence_error(name: str, tmp_path):
    option, content, reason = BAD[name]
    file = tmp_path / "words"
    if content is not None:
        file.write_bytes(content)
    options = {"synonyms": None, "background": None, option: str(file)}
    with pytest.raises((ValueError, FileNotFoundError), match=reason) as error:
        Augmentation(**options, number_formats=False)
    assert "\n" not in str(error.value)


def copies(texts: list[str], jitter: float) -> list[str]:
    change = Augmentation(None, None, False, jitter, texts)
    return [change(text, Random(i)) for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    "form", ["time: {}, year: {}, price: {}", '{{"time": {}, "year": {}, "price": {}}}', "{} {} {}", "{} {} - {}"]
)
def test_jitter_is_relative_to_the_spread_of_a_column(form: str):
    rows = [(1_700_000_000 + 61 * i, 1930 + i % 90, round(1.05**i, 2)) for i in range(200)]
    texts = [form.format(*row) for row in rows]
    new = np.array([[float(x) for x in re.findall(r"[\d.]+", text)] for text in copies(texts, 0.1)])
    noise = (new - np.array(rows)).std(axis=0) / np.std(rows, axis=0)
    assert 0.2 < noise[0] < 0.4
    assert 0.2 < noise[1] < 0.4
    # Prices differ by more than 10 %, and get the same noise as without the other columns.
    alone = [Augmentation(None, None, False, 0.1)(form.format(*row), Random(i)) for i, row in enumerate(rows)]
    assert [float(re.findall(r"[\d.]+", text)[-1]) for text in alone] == new[:, 2].tolist()
    assert set(new[:, 1]) <= set(range(1900, 2050))  # whole numbers


def test_dates_and_times_are_not_changed():
    dates = [
        "1970-01-31",
        "2024/2/29",
        "31/12/1999",
        "12:30",
        "1970-01-31T12:30:00Z",
        "1970-01-31 12:30:00.5",
        "9:05:07",
    ]
    for texts in ([f"on: {date}, at: 7" for date in dates], [f"{date} x" for date in dates]):
        assert [new.partition(", ")[0] for new in copies(texts, 0.5)] == [text.partition(", ")[0] for text in texts]
        change = Augmentation(None, None, True)
        assert [change(text, Random(3)).partition(", ")[0] for text in texts] == [t.partition(", ")[0] for t in texts]


def test_jitter_leaves_a_constant_and_the_stream_of_other_numbers():
    texts = [f"v: 3, x: {i}" for i in range(1, 60)]
    new = copies(texts, 0.1)
    assert all(text.startswith("v: 3, ") for text in new)
    alone = [Augmentation(None, None, False, 0.1)(text, Random(i)) for i, text in enumerate(texts)]
    assert [text.split()[3] for text in new] == [text.split()[3] for text in alone]


def test_jitter_beyond_floats_leaves_the_number():
    change, random = Augmentation(None, None, False, jitter=1e5), Random(0)
    assert {change("1.5", random) for _ in range(20)} == {"1.5", "0"}
