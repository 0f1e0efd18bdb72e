"""Numbers as people write them in tables: with units, currency signs, percent signs or thousands separators."""

import re
from typing import Any

_BLANK = " \u00a0\u202f"  # also the narrow and the non-breaking blank between thousands
_SIGN = r"[$€£¥₹₽₩₺~≈]|(?:USD|EUR|GBP|CHF|JPY|CNY|INR)"
_FACTORS = {"k", "K", "M", "B", "bn", "mn", "Mio", "Mrd"}  # which change the number
_WRITTEN = re.compile(
    rf"(?P<minus>[-+\u2212]?)[{_BLANK}]*(?:{_SIGN})?[{_BLANK}]*(?P<sign>[-+\u2212]?)"
    rf"(?P<number>[0-9]{{1,3}}(?P<by>[,.'\u2019{_BLANK}])[0-9]{{3}}(?:(?P=by)[0-9]{{3}})*(?:(?!(?P=by))[.,][0-9]+)?"
    r"|[0-9]+(?:[.,][0-9]+)?)"
    rf"[{_BLANK}]*(?P<unit>%|{_SIGN}|[^\W\d_][^\d,;]{{0,14}}|[°µ\u2032\u2033][^\d,;]{{0,14}})?"
)


def plain_number(cell: Any) -> str | None:
    """The number in a text that is a number with a unit, a sign or separators, as Python reads it; None in any other.

    "$1,200.50" is 1200.50, "12 km" 12, "3,5 %" 3.5 and "1.234.567" 1234567. A single group of three digits after a
    comma, as in "1,200", is read as thousands. A factor such as that of "10k" is not read.
    """
    match = _WRITTEN.fullmatch(cell.strip()) if isinstance(cell, str) else None
    if match is None or (match["minus"] and match["sign"]) or match["unit"] in _FACTORS:
        return None
    number, by = match["number"], match["by"]
    has_groups = by is not None and (by != "." or number.count(".") > 1 or "," in number)
    if has_groups:
        number = number.replace(by, "")
    minus = "-" if (match["minus"] or match["sign"]) in ("-", "\u2212") else ""
    return minus + number.replace(",", ".")
