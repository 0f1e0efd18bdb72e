"""Augmentation of texts: synonyms, background sentences, other formats of numbers, and noise on numbers.

Synonym replacement follows Wei and Zou 2019, "EDA: Easy Data Augmentation" (arXiv 1901.11196), without its random
deletions and swaps, which can invert the meaning of a sentence. No change removes or adds a negation, and only `jitter`
changes the value of a number.
"""

import os
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from random import Random

import yaml

from zoo.datamodules.jitter import DATE_OR_NUMBER, Jitter
from zoo.errors import UserError
from zoo.text_formats.text_file import read_text
from zoo.text_formats.yaml_text import describe_yaml_error, parse_texts

ENGLISH = "english"  # the list of synonyms in synonyms.yaml
_MAX_BYTES = 1 << 26  # of a file of synonyms or sentences
_LARGE_EXPONENT = re.compile(r"[eE][-+]?0*[1-9]\d{2}")  # such a number has a hundred digits
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")


class Augmentation:
    """Random changes of a text, drawn from a given generator.

    Args:
        synonyms: a YAML file of words, each with a list of synonyms, or "english" for the list included here; None
            replaces no words.
        background: a text file with one sentence per line, of which one is added before or after the text; None adds
            none.
        number_formats: rewrite numbers: 1000 as 1,000, 1e3 or 1000.0.
        jitter: multiply each number by exp(N(0, jitter^2)), less in columns of similar numbers (`Jitter`); 0 turns it
            off.
        texts: texts of all rows, from which the columns are known.

    Raises:
        FileNotFoundError: the file does not exist.
        UserError: a file cannot be used.
    """

    def __init__(
        self,
        synonyms: str | None,
        background: str | None,
        number_formats: bool,
        jitter: float = 0.0,
        texts: Sequence[str] = (),
    ) -> None:
        self._synonyms = _read_synonyms(synonyms) if synonyms else {}
        self._background = _read_background(background) if background else []
        self._number_formats, self._jitter = number_formats, Jitter(jitter, texts) if jitter else None

    def __call__(self, text: str, random: Random) -> str:
        """A changed copy of `text`."""
        if self._jitter:
            text = self._jitter(text, random)
        if self._number_formats:
            text = _rewrite_numbers(text, random)
        if self._synonyms:
            text = self._replace_words(text, random)
        if self._background:
            sentence = random.choice(self._background)
            text = f"{sentence} {text}" if random.random() < 0.5 else f"{text} {sentence}"
        return text

    def _replace_words(self, text: str, random: Random) -> str:
        """Replace at least one of the words that have synonyms, and keep capital letters."""
        known = [word for word in _WORD.finditer(text) if word[0].lower() in self._synonyms]
        chosen = random.sample(known, random.randint(1, len(known))) if known else []
        for word in sorted(chosen, key=re.Match.start, reverse=True):  # from the end, so that offsets stay valid
            new = random.choice(self._synonyms[word[0].lower()])
            if word[0][0].isupper():
                new = new.upper() if word[0].isupper() and len(word[0]) > 1 else new[0].upper() + new[1:]
            text = text[: word.start()] + new + text[word.end() :]
        return text


def _rewrite_numbers(text: str, random: Random) -> str:
    def rewrite(number: re.Match[str]) -> str:
        if number["date"] is not None:
            return number[0]
        start, end = number.span()
        before, after = text[max(start - 2, 0) : start], text[end : end + 2]
        if re.fullmatch(r"\d,", before) or re.fullmatch(r",\d", after):
            return number[0]  # part of 1,000 or of a list
        forms = number_forms(number[0], thousands=not text.startswith(("{", "[")))  # not in JSON
        return random.choice(forms) if forms else number[0]

    return DATE_OR_NUMBER.sub(rewrite, text)


def number_forms(number: str, thousands: bool = True) -> list[str]:
    """Other ways to write a decimal number: equal in value and at most four characters longer.

    Args:
        number: the number as written.
        thousands: allow commas between thousands.
    """
    if _LARGE_EXPONENT.search(number):  # Decimal would write all digits
        return []
    value = Decimal(number)
    if len(value.as_tuple().digits) > 28:  # `normalize` would round it
        return []
    plain = f"{value:f}"
    forms = {plain, plain + ("0" if "." in plain else ".0"), f"{value.normalize():e}".replace("e+", "e")}
    if thousands:
        forms.add(f"{value:,f}")
    return sorted(form for form in forms - {number} if len(form) <= len(number) + 4)


def _read_synonyms(name: str) -> dict[str, list[str]]:
    file = Path(__file__).with_name("synonyms.yaml") if name == ENGLISH else Path(os.path.expanduser(name))
    try:
        # The base loader reads "no" and "yes" as words, not as booleans.
        words = parse_texts(_read(file, "synonyms"))
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML{describe_yaml_error(error)}") from error
    if not isinstance(words, dict) or not words:
        raise UserError(f"{file} has no synonyms: it must map each word to a list of words")
    for word, others in words.items():
        if not (isinstance(others, list) and others and all(isinstance(other, str) and other for other in others)):
            raise UserError(f"{file}: the synonyms of {word!r} are not a list of words")
    return {word.lower(): others for word, others in words.items()}


def _read_background(name: str) -> list[str]:
    sentences = [
        line.strip() for line in _read(Path(os.path.expanduser(name)), "background").splitlines() if line.strip()
    ]
    if not sentences:
        raise UserError(f"{name} is empty: it must have one sentence per line")
    return sentences


def _read(file: Path, option: str) -> str:
    if not os.path.exists(file):
        raise FileNotFoundError(f"there is no file {file}: set --data.{option} to an existing file")
    return read_text(file, max_bytes=_MAX_BYTES)
