"""Number formats by name, as configurations select them."""

from typing import Any, Literal

from zoo.errors import UserError, check_choice, check_counts
from zoo.regress_lm.number_tokenizers import IEEEFloatTokenizer, NormalizedTokenizer, NumberTokenizer, P10Tokenizer
from zoo.regress_lm.number_wrappers import SpecialValues

NumberFormat = Literal["ieee", "p10", "normalized"]


def number_tokenizer(
    kind: NumberFormat, digits: int | None = None, exponent: int | None = None, special_values: bool = False
) -> NumberTokenizer:
    """The tokenizer of a number format.

    Args:
        kind: "ieee", "p10" or "normalized".
        digits: significant digits. Default: 4, and 3 for "normalized".
        exponent: for "ieee" the number of exponent digits (default 1), for "p10" the largest power of ten (default 10).
        special_values: add NaN and infinities.

    Raises:
        UserError: the format is unknown, or a size is out of range or has no meaning for it.
    """
    sizes: dict[str, Any] = {
        "ieee": {"digits": digits, "exponent_digits": exponent},
        "p10": {"digits": digits, "exponent": exponent},
        "normalized": {"length": digits},
    }
    check_choice("number_format", kind, tuple(sizes))
    for name, size in (("number_digits", digits), ("number_exponent", exponent)):
        if size is not None:
            check_counts(**{name: size})
    if not isinstance(special_values, bool):
        raise UserError(f"special_values must be true or false, not {special_values!r}")
    if kind == "normalized" and exponent is not None:
        raise UserError("number_format=normalized has no exponent: drop number_exponent")
    kinds = {"ieee": IEEEFloatTokenizer, "p10": P10Tokenizer, "normalized": NormalizedTokenizer}
    tokenizer = kinds[kind](**{name: size for name, size in sizes[kind].items() if size is not None})
    return SpecialValues(tokenizer) if special_values else tokenizer
