"""Numbers as tokens: three formats for floats.

-72.5 with four digits is
    <-><+><1><7><2><5><0>     IEEE: sign, exponent with its sign, mantissa d.ddd (after IEEE 754);
    <-><7><2><5><0><E-2>      P10: sign, mantissa dddd, a token for the power of ten (Charton 2021,
                              https://arxiv.org/abs/2112.01898);
and .523 is <5><2><3> with three digits of [0, 1], Normalized. Tokens and grammar are those of
https://github.com/google-deepmind/regress-lm. There IEEE truncates digits, so that .57 becomes .5699, and P10 decodes
its own .57 as .5700000000000001. Here a number becomes the nearest one that the tokens can represent, and the tokens
are decoded to the nearest double: the error is at most half a unit of the last digit, and a decimal of as many digits
is reproduced exactly.
"""

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zoo.errors import UserError, check_counts, check_number
from zoo.regress_lm.number_inputs import as_numbers
from zoo.regress_lm.rounding import (
    Floats,
    Ints,
    from_digits,
    nearest,
    product,
    significant,
    to_digits,
    truncated,
)

Flags = NDArray[np.bool_]
LARGEST_BASE = 1024
LARGEST_POWER = 400  # powers of ten beyond it hold no double
LARGEST_EXPONENT_BITS = 32  # of an exponent's digits: enough for every double in every base, and exact in int64


class NumberTokenizer(ABC):
    """Base class: a float to a fixed number of tokens and back.

    Local ids count `tokens` from 0. A finite automaton over local ids defines which tokens may follow each other: it
    starts in state 0, `allowed` (S, V) lists the tokens of each state, and `next_state` (S, V) is the state after a
    token, S after the last token of a number.

    Attributes:
        num_tokens: tokens of a number.
        tokens: the V distinct tokens.
    """

    num_tokens: int
    tokens: list[str]

    @cached_property
    @abstractmethod
    def allowed(self) -> Flags:
        """(S, V) whether a token may come in a state."""

    @cached_property
    def next_state(self) -> Ints:
        """(S, V) the state after each token; by default a state is a position."""
        return np.repeat(np.arange(1, self.num_tokens + 1)[:, None], len(self.tokens), axis=1)

    @property
    def magnitude_states(self) -> tuple[int, ...]:
        """The states whose token is a sign or a part of the exponent."""
        return ()

    @abstractmethod
    def tokenize(self, values: Floats) -> tuple[Ints, Flags]:
        """Local ids (N, num_tokens) of values (N,), and whether each value (N,) was clamped to the range."""

    @abstractmethod
    def decode(self, ids: Ints) -> Floats:
        """Numbers (...,) in float64 of local ids (..., num_tokens) that the automaton allows."""

    def encode(self, values: ArrayLike) -> Ints:
        """Local ids (..., num_tokens) of values (...,). Values outside the range are clamped, with one warning."""
        ids, clamped = self.encode_clamped(values)
        if clamped.any():
            warnings.warn(
                f"{clamped.sum()} of {clamped.size} numbers are beyond the range of the number tokenizer, "
                f"{self.limits[0]:g} to {self.limits[1]:g}, and are clamped to it",
                stacklevel=2,
            )
        return ids

    def encode_clamped(self, values: ArrayLike) -> tuple[Ints, Flags]:
        """As `encode`, without a warning; and whether each of values (...,) was clamped to the range."""
        values = as_numbers("a number to encode", values)
        ids, clamped = self.tokenize(values.ravel())
        return ids.reshape(*values.shape, self.num_tokens), clamped.reshape(values.shape)

    def rounded(self, values: ArrayLike) -> Floats:
        """The number that each of values (...,) becomes as tokens, without a warning of those that are clamped."""
        return self.decode(self.encode_clamped(values)[0])

    @property
    @abstractmethod
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest number that the tokens can represent."""

    def to_tokens(self, value: float) -> list[str]:
        """The tokens of a number.

        Raises:
            UserError: it is not a number, or cannot be represented by tokens.
        """
        ids = self.encode(value)
        if ids.ndim != 1:
            raise UserError(f"to_tokens takes one number, not an array of shape {ids.shape[:-1]}: use encode")
        return [self.tokens[i] for i in ids]

    def from_tokens(self, tokens: Sequence[str]) -> float:
        """The number of a token sequence.

        Raises:
            UserError: the tokens represent no number.
        """
        # Run the automaton over the tokens, which rejects the first one that its state does not allow.
        id_of = {token: i for i, token in enumerate(self.tokens)}
        state, ids = 0, []
        if isinstance(tokens, str) or not isinstance(tokens, Iterable):
            raise UserError(f"the tokens of a number must be a list of text, not {tokens!r}")
        tokens = list(tokens)
        if len(tokens) != self.num_tokens:
            raise UserError(f"a number takes {self.num_tokens} tokens here, not {len(tokens)}")
        for position, token in enumerate(tokens):
            if not isinstance(token, str) or token not in id_of or not self.allowed[state, id_of[token]]:
                raise UserError(f"token {position} of a number cannot be {token!r} here")
            ids.append(id_of[token])
            state = int(self.next_state[state, ids[-1]])
        return float(self.decode(np.array(ids)))


class SignedTokenizer(NumberTokenizer):
    """Base class of formats with a sign, a mantissa and an exponent.

    Attributes:
        base: base of the digits.
        digits: digits of the mantissa.
        top: largest exponent of the mantissa's first digit.
    """

    base: int
    digits: int
    top: int

    @property
    def limits(self) -> tuple[float, float]:
        mantissa, exponent = self.largest
        greatest = float(product(np.array(mantissa), self.base, np.array(exponent - self.digits + 1)))
        return -greatest, greatest

    @cached_property
    def largest(self) -> tuple[int, int]:
        """Mantissa of the largest number, and the exponent of its first digit."""
        return largest_finite(self.base, self.digits, self.top)

    def clamp(self, mantissa: Ints, exponent: Ints) -> tuple[Ints, Ints, Flags]:
        """Mantissas and exponents (N,), those of the largest number for larger ones; and whether each was larger."""
        most, top = self.largest
        is_larger = (exponent > top) | ((exponent == top) & (mantissa > most))
        return np.where(is_larger, most, mantissa), np.minimum(exponent, top), is_larger


class IEEEFloatTokenizer(SignedTokenizer):
    """Sign, sign of the exponent, digits of the exponent, digits of the mantissa: 2 + exponent_digits + digits tokens.

    Below the smallest exponent the mantissa starts with zeros, so that small numbers lose digits one by one.

    Args:
        base: base of all digits, at least 2.
        exponent_digits: digits of the exponent, at least 1.
        digits: digits of the mantissa, at least 1.
        truncate: give upstream's tokens exactly, which truncate the mantissa and turn small numbers into 0.
    """

    def __init__(self, base: int = 10, exponent_digits: int = 1, digits: int = 4, truncate: bool = False) -> None:
        _check(base=base, digits=digits)
        check_counts(exponent_digits=exponent_digits)
        if exponent_digits > LARGEST_EXPONENT_BITS or base**exponent_digits > 2**LARGEST_EXPONENT_BITS:
            raise UserError(
                f"exponent_digits {exponent_digits} in base {base} are more than any double needs: use fewer"
            )
        self.base, self.exponent_digits, self.digits = int(base), int(exponent_digits), int(digits)
        self.truncate = truncate
        self.top = self.base**self.exponent_digits - 1
        self.num_tokens = 2 + self.exponent_digits + self.digits
        self.tokens = ["<+>", "<->", *(f"<{i}>" for i in range(base))]

    @cached_property
    def allowed(self) -> Flags:
        sign = np.arange(len(self.tokens)) < 2
        return np.stack([sign] * 2 + [~sign] * (self.num_tokens - 2))

    @property
    def magnitude_states(self) -> tuple[int, ...]:
        return tuple(range(2 + self.exponent_digits))

    def tokenize(self, values: Floats) -> tuple[Ints, Flags]:
        # The sign has its own token, so only the size is split into mantissa and exponent.
        size = np.abs(_finite(values))
        if self.truncate:
            clamped = size > self.limits[1]
            mantissa, exponent = truncated(np.minimum(size, self.limits[1]), self.base, self.digits)
            # As upstream: numbers below the smallest exponent become 0, but keep their exponent's sign.
            small = exponent < -self.top
            minus = exponent < 0
            mantissa, exponent = np.where(small, 0, mantissa), np.where(small, 0, exponent)
        else:
            mantissa, exponent = significant(size, self.base, self.digits, -self.top)
            minus = exponent < 0
            mantissa, exponent, clamped = self.clamp(mantissa, exponent)
        # 2: the digits follow the two sign tokens in the list of tokens.
        signs = np.stack([values < 0, minus], 1)  # (N, 2)
        exponents = to_digits(np.abs(exponent), self.base, self.exponent_digits)
        return np.concatenate([signs, 2 + exponents, 2 + to_digits(mantissa, self.base, self.digits)], 1), clamped

    def decode(self, ids: Ints) -> Floats:
        # Tokens 0 and 1 are the signs + and -; value = sign * mantissa * base^(exponent - digits + 1).
        signs, digits = 1 - 2 * ids[..., :2], ids[..., 2:] - 2
        exponent = signs[..., 1] * from_digits(digits[..., : self.exponent_digits], self.base)
        mantissa = from_digits(digits[..., self.exponent_digits :], self.base)
        return signs[..., 0] * product(mantissa, self.base, exponent - self.digits + 1)


class P10Tokenizer(SignedTokenizer):
    """Sign, digits of the mantissa, a token for the power of ten from -exponent to exponent: 2 + digits tokens.

    A number smaller than 10...0 at the smallest power becomes that number or 0, whichever is nearer.

    Args:
        digits: digits of the mantissa, at least 1.
        exponent: largest power of ten, at least 1.
        truncate: without effect, because upstream rounds here; accepted so that all tokenizers take it.
    """

    def __init__(self, digits: int = 4, exponent: int = 10, truncate: bool = False) -> None:
        _check(digits=digits)
        check_number("exponent", exponent, f"from 1 to {LARGEST_POWER}", lambda e: 1 <= e <= LARGEST_POWER, whole=True)
        self.base, self.digits, self.exponent = 10, int(digits), int(exponent)
        self.top = self.exponent + self.digits - 1
        self.num_tokens = 2 + self.digits
        exponents = range(-self.exponent, self.exponent + 1)
        self.tokens = ["<+>", "<->", *(f"<{i}>" for i in range(10)), *(f"<E{i}>" for i in exponents)]

    @cached_property
    def allowed(self) -> Flags:
        ids = np.arange(len(self.tokens))
        return np.stack([ids < 2, *[(ids >= 2) & (ids < 12)] * self.digits, ids >= 12])

    @property
    def magnitude_states(self) -> tuple[int, ...]:
        return 0, self.num_tokens - 1

    def tokenize(self, values: Floats) -> tuple[Ints, Flags]:
        # Split the size into a mantissa d...d and the exponent of its first digit.
        lowest = self.digits - 1 - self.exponent  # exponent of the smallest number's first digit
        size = np.abs(_finite(values))
        mantissa, exponent = significant(size, 10, self.digits, lowest)
        # Only 0 has a mantissa that starts with 0: a smaller number becomes 10...0 or 0, whichever is nearer.
        small, least = mantissa < 10 ** (self.digits - 1), float(product(np.array(1), 10, np.array(lowest)))
        exponent = np.where(small, np.where(size > least / 2, lowest, 0), exponent)
        mantissa = np.where(small, np.where(size > least / 2, 10 ** (self.digits - 1), 0), mantissa)
        mantissa, exponent, clamped = self.clamp(mantissa, exponent)
        # The token is the power of ten of the last digit; 0 is written with power 0.
        power = np.where(mantissa > 0, exponent - self.digits + 1, 0)
        # Ids: two signs, ten digits, then the powers from -exponent on.
        parts = (values < 0)[:, None], 2 + to_digits(mantissa, 10, self.digits), (12 + self.exponent + power)[:, None]
        return np.concatenate(parts, 1), clamped

    def decode(self, ids: Ints) -> Floats:
        # The inverse of `tokenize`: sign * mantissa * 10^power.
        power = ids[..., -1] - 12 - self.exponent
        return (1 - 2 * ids[..., 0]) * product(from_digits(ids[..., 1:-1] - 2, 10), 10, power)


class NormalizedTokenizer(NumberTokenizer):
    """The first `length` digits of a number in [0, 1]. The largest number, also for 1, is 1 - base^-length.

    Args:
        base: base of the digits, at least 2.
        length: number of digits, at least 1.
        truncate: give upstream's tokens exactly, which truncate.
    """

    def __init__(self, base: int = 10, length: int = 3, truncate: bool = False) -> None:
        _check(base=base, digits=length)
        self.base, self.length, self.truncate = int(base), int(length), truncate
        self.num_tokens = self.length
        self.tokens = [f"<{i}>" for i in range(base)]

    @cached_property
    def allowed(self) -> Flags:
        return np.ones((self.length, self.base), dtype=np.bool_)

    @property
    def limits(self) -> tuple[float, float]:
        return 0.0, (self.base**self.length - 1) / self.base**self.length

    def tokenize(self, values: Floats) -> tuple[Ints, Flags]:
        # The digits are those of the integer nearest to value * base^length.
        inside = np.clip(_finite(values), 0, 1)
        if self.truncate:
            scaled = np.floor(inside * self.base**self.length).astype(np.int64)
        else:
            scaled = nearest(inside, self.base, np.full(len(values), self.length))
        # 1 itself needs one digit more, so it becomes the largest number.
        most = self.base**self.length - 1
        clamped = (scaled > most) | (values != inside)
        return to_digits(np.minimum(scaled, most), self.base, self.length), clamped

    def decode(self, ids: Ints) -> Floats:
        return product(from_digits(ids, self.base), self.base, np.full(ids.shape[:-1], -self.length))


def largest_finite(base: int, digits: int, top: int) -> tuple[int, int]:
    """Mantissa and exponent of the largest double with `digits` digits whose exponent is at most `top`."""
    mantissa, exponent = (int(part[0]) for part in significant(np.array([sys.float_info.max]), base, digits, 0))
    if exponent > top:
        return base**digits - 1, top
    if np.isinf(product(np.array([mantissa]), base, np.array([exponent - digits + 1])))[0]:  # it was rounded up
        mantissa -= 1
    return (mantissa, exponent) if mantissa >= base ** (digits - 1) else (base**digits - 1, exponent - 1)


def _check(digits: int, base: int = 10) -> None:
    """Raises UserError for a size out of range."""
    check_number("base", base, f"from 2 to {LARGEST_BASE}", lambda b: 2 <= b <= LARGEST_BASE, whole=True)
    check_counts(digits=digits)
    if digits > 52 or base**digits > 2**52:
        raise UserError(f"{digits} digits in base {base} are more than a double holds: use fewer digits")


def _finite(values: Floats) -> Floats:
    """The values; raises UserError where one is NaN or infinite."""
    bad = values[~np.isfinite(values)]
    if bad.size:
        raise UserError(f"{bad[0]} has no tokens as a number: leave it out, or wrap the tokenizer in SpecialValues")
    return values
