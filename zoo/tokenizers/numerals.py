"""Numbers within a text: finding them, and rounding them before tokenization."""

import math
import re

# A separate number: neither the 1 of "X1" nor the minus of "2-3" nor any part of "1.2.3".
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w|\.\d)")
# A date, 1970-01-31 or 1970/1/31, also before a time: its parts are not quantities.
DATE = re.compile(
    r"(?<![\w./-])(?P<year>\d{4})(?P<dash>[-/])(?P<month>0?[1-9]|1[0-2])(?P=dash)(?P<day>0?[1-9]|[12]\d|3[01])"
    r"(?!\d|[-/.]\d|[^\WT])"
)
_DATE_OR_NUMBER = re.compile(f"{DATE.pattern}|{NUMBER.pattern}")
_LONG_EXPONENT = re.compile(r"e(?:\+|(-))0*")


def rounded(text: str, digits: int, powers: bool = False) -> str:
    """`text` with its numbers rounded; a number beyond the range of floats, such as 1e999, stays as it is.

    A date (`DATE`) is not rounded, because two digits would make all years of a century equal.

    Args:
        text: any text.
        digits: number of significant digits, at least 1: with 2, 650459392 becomes 6.5e8.
        powers: write each number as two words, mantissa and power of ten: 6.5 e8, and 5.0 e-1 for 0.5; and a date
            as three: 1970 01 31.
    """

    def write(number: re.Match[str]) -> str:
        if number["year"]:
            return " ".join(number.group("year", "month", "day")) if powers else number[0]
        value = float(number[0])
        if not math.isfinite(value):
            return number[0]
        word = f"{value:.{digits - 1}e}" if powers else f"{value:.{digits}g}"
        word = _LONG_EXPONENT.sub("e\\1", word) if "e" in word else word  # 1.5e+08 becomes 1.5e8
        return word.replace("e", " e") if powers else word

    return _DATE_OR_NUMBER.sub(write, text)
