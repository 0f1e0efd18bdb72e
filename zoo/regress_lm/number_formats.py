"""Number formats by name, as configurations select them."""

from collections.abc import Iterator
from typing import Any, Literal

from zoo.errors import UserError, check_choice, check_counts
from zoo.regress_lm.number_tokenizers import IEEEFloatTokenizer, NormalizedTokenizer, NumberTokenizer, P10Tokenizer
from zoo.regress_lm.special_values import SpecialValues
from zoo.training.distinct_targets import Floats, Represent, best_setting

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
        UserError: the format is unknown, or a size is out of range or not used by it.
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


def finer_format(
    quantiles: Floats, kind: NumberFormat, digits: int | None = None, exponent: int | None = None
) -> str | None:
    """The options of the shortest number format that tells targets (Q,) apart, else of the one that does best.

    Args:
        quantiles: distinct targets.
        kind: the present format.
        digits: its significant digits; None for its default.
        exponent: its exponent; None for its default.

    Returns:
        The options that change, as on the command line; None if no format tells any two of the targets apart.
    """
    return best_setting(quantiles, _finer_formats(kind, digits, exponent))


def _finer_formats(kind: NumberFormat, digits: int | None, exponent: int | None) -> Iterator[tuple[str, Represent]]:
    """The options of the formats with more digits or a larger exponent, and what they make of a target."""
    # "normalized" has numbers from 0 to 1 only; other targets need another format.
    kinds: list[NumberFormat] = [kind] if kind != "normalized" else [kind, "ieee"]
    for name in kinds:
        first = (digits if name == kind else None) or {"ieee": 4, "p10": 4, "normalized": 3}[name]
        least = (exponent if name == kind else None) or {"ieee": 1, "p10": 10, "normalized": 0}[name]
        exponents = {"ieee": range(least, 4), "p10": (least, 20, 50, 100, 300), "normalized": (0,)}[name]
        choices = [(n, e) for e in exponents if e >= least for n in range(first, 16)]
        # One more exponent digit of "ieee" is one more token, as a digit is.
        for n, e in sorted(choices, key=lambda choice: choice[0] + (choice[1] if name == "ieee" else 0)):
            options = [f"--model.number_format {name}"] * (name != kind)
            options += [f"--model.number_digits {n}"] * (n != first)
            options += [f"--model.number_exponent {e}"] * (e != least)
            if options:
                yield " ".join(options), number_tokenizer(name, n, e or None).rounded
