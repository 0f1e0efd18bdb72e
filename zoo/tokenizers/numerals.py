"""Numbers within a text: finding them, and rounding them before tokenization."""

import math
import re

# A separate number: neither the 1 of "X1" nor the minus of "2-3" nor any part of "1.2.3".
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w|\.\d)")
_LONG_EXPONENT = re.compile(r"e(?:\+|(-))0*")


def rounded(text: str, digits: int, powers: bool = False) -> str:
    """`text` with its numbers rounded; a number beyond the range of floats, such as 1e999, stays as it is.

    Args:
        text: any text.
        digits: number of significant digits, at least 1: with 2, 650459392 becomes 6.5e8.
        powers: write each number as two words, mantissa and power of ten: 6.5 e8, and 5.0 e-1 for 0.5.
    """

    def write(number: re.Match[str]) -> str:
        value = float(number[0])
        if not math.isfinite(value):
            return number[0]
        word = f"{value:.{digits - 1}e}" if powers else f"{value:.{digits}g}"
        word = _LONG_EXPONENT.sub("e\\1", word) if "e" in word else word  # 1.5e+08 becomes 1.5e8
        return word.replace("e", " e") if powers else word

    return NUMBER.sub(write, text)
