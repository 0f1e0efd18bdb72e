"""Numbers as tokens: three ways to spell a float, and two wrappers.

-72.5 in four digits is
    <-><+><1><7><2><5><0>     IEEE: sign, exponent with its sign, mantissa d.ddd (after IEEE 754);
    <-><7><2><5><0><E-2>      P10: sign, mantissa dddd, a token for the power of ten (Charton 2021,
                              https://arxiv.org/abs/2112.01898);
and .523 is <5><2><3> in three digits of [0, 1], Normalized. Tokens and grammar are those of
https://github.com/google-deepmind/regress-lm; there IEEE cuts digits off, and so .57 becomes .5699, and P10 reads its
own .57 as .5700000000000001. Here each number becomes the nearest one that the tokens can spell, and these are read
back as the nearest double: at most half a unit of the last place is lost, and no decimal of that many digits changes.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zoo.errors import UserError
from zoo.regress_lm.rounding import Floats, Ints, nearest, product, read, significant, spelt, truncated

PAD = "<pad>"
SPECIAL = {"<INVALID>": np.nan, "<NAN>": np.nan, "<INF>": np.inf, "<NINF>": -np.inf}
Flags = NDArray[np.bool_]


class NumberTokenizer(ABC):
    """A number to `num_tokens` tokens and back. Local ids count `tokens`, all distinct, from 0.

    Which token may follow is told by a finite automaton over the local ids: `allowed` (S, V) and `next_state` (S, V).
    It starts in state 0 and has ended in state S.
    """

    num_tokens: int
    tokens: list[str]

    @cached_property
    @abstractmethod
    def allowed(self) -> Flags: ...

    @cached_property
    def next_state(self) -> Ints:
        """By default a state is a position."""
        return np.repeat(np.arange(1, self.num_tokens + 1)[:, None], len(self.tokens), axis=1)

    @abstractmethod
    def spell(self, values: Floats) -> tuple[Ints, Flags]:
        """Local ids (N, num_tokens) of values (N,), and where (N,) the range clamps them."""

    @abstractmethod
    def decode(self, ids: Ints) -> Floats:
        """Local ids (..., num_tokens), as the grammar allows them, to float64 (...,)."""

    def encode(self, values: ArrayLike) -> Ints:
        """Values (...,) to local ids (..., num_tokens). Warns, once, of what lies beyond the range and is clamped."""
        values = np.asarray(values, dtype=np.float64)
        ids, clamped = self.spell(values.ravel())
        if clamped.any():
            warnings.warn(
                f"{clamped.sum()} of {clamped.size} numbers lie beyond the range of the number tokenizer, "
                f"{self.limits[0]:g} to {self.limits[1]:g}, and are clamped to it",
                stacklevel=2,
            )
        return ids.reshape(*values.shape, self.num_tokens)

    def clamped(self, values: ArrayLike) -> Flags:
        """Where (...,) the range clamps values (...,)."""
        values = np.asarray(values, dtype=np.float64)
        return self.spell(values.ravel())[1].reshape(values.shape)

    @property
    @abstractmethod
    def limits(self) -> tuple[float, float]:
        """The least and the greatest number that can be spelt."""

    def to_tokens(self, value: float) -> list[str]:
        return [self.tokens[i] for i in self.encode(value)]

    def from_tokens(self, tokens: Sequence[str]) -> float:
        """Raises ValueError, in one sentence, for tokens that spell no number."""
        known, state, ids = {token: i for i, token in enumerate(self.tokens)}, 0, []
        if len(tokens) != self.num_tokens:
            raise UserError(f"a number takes {self.num_tokens} tokens here, not {len(tokens)}")
        for place, token in enumerate(tokens):
            if token not in known or not self.allowed[state, known[token]]:
                raise UserError(f"token {place} of a number cannot be {token!r} here")
            ids.append(known[token])
            state = int(self.next_state[state, ids[-1]])
        return float(self.decode(np.array(ids)))


class IEEEFloatTokenizer(NumberTokenizer):
    """Sign, sign of the exponent, its digits, the mantissa's: 2 + exponent_digits + digits tokens.

    Below the smallest exponent the mantissa begins with zeros, so that small numbers lose digits one by one.
    truncate=True gives upstream's tokens exactly: digits cut off, small numbers 0.
    """

    def __init__(
        self, base: int = 10, exponent_digits: int = 1, digits: int = 4, truncate: bool = False
    ) -> None:
        _check(base=base, exponent_digits=exponent_digits, digits=digits)
        self.base, self.exponent_digits, self.digits, self.truncate = base, exponent_digits, digits, truncate
        self.top = base**exponent_digits - 1
        self.num_tokens = 2 + exponent_digits + digits
        self.tokens = ["<+>", "<->", *(f"<{i}>" for i in range(base))]

    @cached_property
    def allowed(self) -> Flags:
        sign = np.arange(len(self.tokens)) < 2
        return np.stack([sign] * 2 + [~sign] * (self.num_tokens - 2))

    @property
    def limits(self) -> tuple[float, float]:
        greatest = float(product(np.array(self.base**self.digits - 1), self.base, np.array(self.top - self.digits + 1)))
        return -greatest, greatest

    def spell(self, values: Floats) -> tuple[Ints, Flags]:
        size = np.abs(_finite(values))
        if self.truncate:
            clamped = size > self.limits[1]
            mantissa, exponent = truncated(np.minimum(size, self.limits[1]), self.base, self.digits)
            small = exponent < -self.top
            minus = exponent < 0
            mantissa, exponent = np.where(small, 0, mantissa), np.where(small, 0, exponent)
        else:
            mantissa, exponent = significant(size, self.base, self.digits, -self.top)
            clamped = exponent > self.top
            minus = exponent < 0
            mantissa = np.where(clamped, self.base**self.digits - 1, mantissa)
            exponent = np.minimum(exponent, self.top)
        signs = np.stack([values < 0, minus], 1)  # (N, 2)
        exponents = spelt(np.abs(exponent), self.base, self.exponent_digits)
        return np.concatenate([signs, 2 + exponents, 2 + spelt(mantissa, self.base, self.digits)], 1), clamped

    def decode(self, ids: Ints) -> Floats:
        signs, digits = 1 - 2 * ids[..., :2], ids[..., 2:] - 2
        exponent = signs[..., 1] * read(digits[..., : self.exponent_digits], self.base)
        mantissa = read(digits[..., self.exponent_digits :], self.base)
        return signs[..., 0] * product(mantissa, self.base, exponent - self.digits + 1)


class P10Tokenizer(NumberTokenizer):
    """Sign, the mantissa's digits, a token for the power of ten from -exponent to exponent: 2 + digits tokens.

    What is smaller than 10...0 at the smallest power becomes that or 0, whichever is nearer. Upstream rounds here, so
    that `truncate` changes no token; it is taken that all tokenizers may be built alike.
    """

    def __init__(self, digits: int = 4, exponent: int = 10, truncate: bool = False) -> None:
        _check(digits=digits, exponent=exponent)
        self.digits, self.exponent = digits, exponent
        self.num_tokens = 2 + digits
        exponents = range(-exponent, exponent + 1)
        self.tokens = ["<+>", "<->", *(f"<{i}>" for i in range(10)), *(f"<E{i}>" for i in exponents)]

    @cached_property
    def allowed(self) -> Flags:
        ids = np.arange(len(self.tokens))
        return np.stack([ids < 2, *[(ids >= 2) & (ids < 12)] * self.digits, ids >= 12])

    @property
    def limits(self) -> tuple[float, float]:
        greatest = float(product(np.array(10**self.digits - 1), 10, np.array(self.exponent)))
        return -greatest, greatest

    def spell(self, values: Floats) -> tuple[Ints, Flags]:
        lowest = self.digits - 1 - self.exponent  # the exponent of the smallest number's first digit
        size = np.abs(_finite(values))
        mantissa, exponent = significant(size, 10, self.digits, lowest)
        small, least = mantissa < 10 ** (self.digits - 1), float(product(np.array(1), 10, np.array(lowest)))
        exponent = np.where(small, np.where(size > least / 2, lowest, 0), exponent)
        mantissa = np.where(small, np.where(size > least / 2, 10 ** (self.digits - 1), 0), mantissa)
        power = np.where(mantissa > 0, exponent - self.digits + 1, 0)
        clamped = power > self.exponent
        mantissa, power = np.where(clamped, 10**self.digits - 1, mantissa), np.minimum(power, self.exponent)
        parts = (values < 0)[:, None], 2 + spelt(mantissa, 10, self.digits), (12 + self.exponent + power)[:, None]
        return np.concatenate(parts, 1), clamped

    def decode(self, ids: Ints) -> Floats:
        power = ids[..., -1] - 12 - self.exponent
        return (1 - 2 * ids[..., 0]) * product(read(ids[..., 1:-1] - 2, 10), 10, power)


class NormalizedTokenizer(NumberTokenizer):
    """The first `length` digits of a number in [0, 1]; the greatest, for 1 too, is 1 - base^-length.

    truncate=True gives upstream's tokens exactly: digits cut off.
    """

    def __init__(self, base: int = 10, length: int = 3, truncate: bool = False) -> None:
        _check(base=base, digits=length)
        self.base, self.length, self.truncate = base, length, truncate
        self.num_tokens = length
        self.tokens = [f"<{i}>" for i in range(base)]

    @cached_property
    def allowed(self) -> Flags:
        return np.ones((self.length, self.base), dtype=np.bool_)

    @property
    def limits(self) -> tuple[float, float]:
        return 0.0, (self.base**self.length - 1) / self.base**self.length

    def spell(self, values: Floats) -> tuple[Ints, Flags]:
        inside = np.clip(_finite(values), 0, 1)
        if self.truncate:
            whole = np.floor(inside * self.base**self.length).astype(np.int64)
        else:
            whole = nearest(inside, self.base, np.full(len(values), self.length))
        most = self.base**self.length - 1
        clamped = (whole > most) | (values != inside)
        return spelt(np.minimum(whole, most), self.base, self.length), clamped

    def decode(self, ids: Ints) -> Floats:
        return product(read(ids, self.base), self.base, np.full(ids.shape[:-1], -self.length))


class SpecialValues(NumberTokenizer):
    """A tokenizer that spells NaN and the infinities too, and `<INVALID>`, which is read as NaN.

    A special value is one token, repeated to the length of a number.
    """

    def __init__(self, tokenizer: NumberTokenizer) -> None:
        self.plain = tokenizer
        self.num_tokens = tokenizer.num_tokens
        self.tokens = [*tokenizer.tokens, *SPECIAL]

    @property
    def limits(self) -> tuple[float, float]:
        return self.plain.limits

    @cached_property
    def allowed(self) -> Flags:
        """The plain states, then for each special token those at which it must be repeated."""
        plain = np.pad(self.plain.allowed, ((0, 0), (0, len(SPECIAL))))  # (S, V)
        plain[0, -len(SPECIAL) :] = True
        repeat = np.eye(len(self.tokens), dtype=np.bool_)[-len(SPECIAL) :]  # (4, V)
        return np.concatenate([plain, np.repeat(repeat, self.num_tokens - 1, axis=0)])

    @cached_property
    def next_state(self) -> Ints:
        states, chain = len(self.plain.allowed), self.num_tokens - 1
        first = states + chain * np.arange(len(SPECIAL))  # where each special token's states begin
        end = states + chain * len(SPECIAL)
        plain = np.pad(self.plain.next_state, ((0, 0), (0, len(SPECIAL))))  # (S, V)
        plain[plain == states] = end
        plain[0, -len(SPECIAL) :] = first if chain else end
        chains = np.arange(states + 1, end + 1)
        chains[(chains - states) % max(chain, 1) == 0] = end
        return np.concatenate([plain, np.repeat(chains[:, None], len(self.tokens), axis=1)])

    def spell(self, values: Floats) -> tuple[Ints, Flags]:
        finite = np.isfinite(values)
        ids, clamped = self.plain.spell(np.where(finite, values, 0))
        which = np.select([np.isnan(values), values > 0], [1, 2], 3)  # NAN, INF, NINF
        return np.where(finite[:, None], ids, len(self.plain.tokens) + which[:, None]), clamped

    def decode(self, ids: Ints) -> Floats:
        which = ids[..., 0] - len(self.plain.tokens)
        values = self.plain.decode(np.where(which[..., None] < 0, ids, self.plain.encode(0.0)))
        return np.where(which < 0, values, np.array(list(SPECIAL.values()))[np.maximum(which, 0)])


class Separator(NumberTokenizer):
    """A tokenizer whose numbers end in `<pad>`, which tells several objectives apart.

    The token is no news: under the grammar its probability is 1, and upstream's loss leaves it out.
    """

    def __init__(self, tokenizer: NumberTokenizer) -> None:
        self.plain = tokenizer
        self.num_tokens = tokenizer.num_tokens + 1
        self.tokens = [*tokenizer.tokens, PAD]

    @property
    def limits(self) -> tuple[float, float]:
        return self.plain.limits

    @cached_property
    def allowed(self) -> Flags:
        end = np.arange(len(self.tokens)) == len(self.tokens) - 1
        return np.concatenate([np.pad(self.plain.allowed, ((0, 0), (0, 1))), end[None]])

    @cached_property
    def next_state(self) -> Ints:
        """The state in which a plain number has ended is the one in which the separator stands."""
        return np.pad(self.plain.next_state, ((0, 1), (0, 1)), constant_values=len(self.allowed))

    def spell(self, values: Floats) -> tuple[Ints, Flags]:
        ids, clamped = self.plain.spell(values)
        return np.pad(ids, ((0, 0), (0, 1)), constant_values=len(self.tokens) - 1), clamped

    def decode(self, ids: Ints) -> Floats:
        return self.plain.decode(ids[..., :-1])


def number_tokenizer(
    kind: Literal["ieee", "p10", "normalized"],
    digits: int | None = None,
    exponent: int | None = None,
    special_values: bool = False,
) -> NumberTokenizer:
    """The tokenizer of that name; `exponent` is IEEE's number of exponent digits, P10's largest power of ten."""
    sizes: dict[str, Any] = {
        "ieee": {"digits": digits, "exponent_digits": exponent},
        "p10": {"digits": digits, "exponent": exponent},
        "normalized": {"length": digits},
    }
    if kind not in sizes:
        raise UserError(f"numbers must be one of {', '.join(sizes)}, not {kind!r}")
    if kind == "normalized" and exponent is not None:
        raise UserError("numbers 'normalized' have no exponent: leave it out")
    kinds = {"ieee": IEEEFloatTokenizer, "p10": P10Tokenizer, "normalized": NormalizedTokenizer}
    tokenizer = kinds[kind](**{name: size for name, size in sizes[kind].items() if size is not None})
    return SpecialValues(tokenizer) if special_values else tokenizer


def _check(digits: int, base: int = 10, **sizes: int) -> None:
    for name, value, least in (("base", base, 2), ("digits", digits, 1), *((n, v, 1) for n, v in sizes.items())):
        if value < least:
            raise UserError(f"{name} of a number tokenizer must be at least {least}, not {value}")
    if base**digits > 2**52:
        raise UserError(f"{digits} digits in base {base} are more than a double holds")


def _finite(values: Floats) -> Floats:
    bad = values[~np.isfinite(values)]
    if bad.size:
        raise UserError(f"{bad[0]} cannot be spelt as a number: leave it out, or wrap the tokenizer in SpecialValues")
    return values
