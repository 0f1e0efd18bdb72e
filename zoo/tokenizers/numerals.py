"""The numbers that stand in a text, and how they are written for a tokenizer."""

import re

# A number that stands by itself: neither the 1 of "X1" nor the minus of "2-3" nor any part of "1.2.3".
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w|\.\d)")
_LONG_EXPONENT = re.compile(r"e(?:\+|(-))0*")


def rounded(text: str, digits: int, powers: bool = False) -> str:
    """`text` with its numbers rounded to so many significant digits: 650459392 is 6.5e8 of two.

    With `powers` every number is a mantissa and a power of ten, two words: 6.5 e8, and 0.5 is 5.0 e-1.
    """

    def write(number: re.Match[str]) -> str:
        word = f"{float(number[0]):.{digits - 1}e}" if powers else f"{float(number[0]):.{digits}g}"
        word = _LONG_EXPONENT.sub("e\\1", word) if "e" in word else word  # 1.5e+08 is 1.5e8
        return word.replace("e", " e") if powers else word

    return NUMBER.sub(write, text)
