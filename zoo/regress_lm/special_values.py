"""SpecialValues: tokens of NaN and the infinities, in addition to those of a number tokenizer."""

from functools import cached_property

import numpy as np

from zoo.regress_lm.number_tokenizers import Flags, NumberTokenizer
from zoo.regress_lm.rounding import Floats, Ints

SPECIAL = {"<INVALID>": np.nan, "<NAN>": np.nan, "<INF>": np.inf, "<NINF>": -np.inf}


class SpecialValues(NumberTokenizer):
    """Adds NaN, the infinities and `<INVALID>`, which decodes to NaN. A special value is one token, repeated.

    Args:
        tokenizer: tokenizer of finite numbers.
    """

    def __init__(self, tokenizer: NumberTokenizer) -> None:
        self.inner = tokenizer
        self.num_tokens = tokenizer.num_tokens
        self.tokens = [*tokenizer.tokens, *SPECIAL]

    @property
    def limits(self) -> tuple[float, float]:
        return self.inner.limits

    @property
    def magnitude_states(self) -> tuple[int, ...]:
        return self.inner.magnitude_states

    @cached_property
    def allowed(self) -> Flags:
        """The states of finite numbers, then for each special token the states in which it must be repeated."""
        plain = np.pad(self.inner.allowed, ((0, 0), (0, len(SPECIAL))))  # (S, V)
        plain[0, -len(SPECIAL) :] = True
        repeat = np.eye(len(self.tokens), dtype=np.bool_)[-len(SPECIAL) :]  # (4, V)
        return np.concatenate([plain, np.repeat(repeat, self.num_tokens - 1, axis=0)])

    @cached_property
    def next_state(self) -> Ints:
        states, chain = len(self.inner.allowed), self.num_tokens - 1
        first = states + chain * np.arange(len(SPECIAL))  # the first state of each special token
        end = states + chain * len(SPECIAL)
        plain = np.pad(self.inner.next_state, ((0, 0), (0, len(SPECIAL))))  # (S, V)
        plain[plain == states] = end
        plain[0, -len(SPECIAL) :] = first if chain else end
        chains = np.arange(states + 1, end + 1)
        chains[(chains - states) % max(chain, 1) == 0] = end
        return np.concatenate([plain, np.repeat(chains[:, None], len(self.tokens), axis=1)])

    def tokenize(self, values: Floats) -> tuple[Ints, Flags]:
        finite = np.isfinite(values)
        ids, clamped = self.inner.tokenize(np.where(finite, values, 0))
        which = np.select([np.isnan(values), values > 0], [1, 2], 3)  # NAN, INF, NINF
        return np.where(finite[:, None], ids, len(self.inner.tokens) + which[:, None]), clamped

    def decode(self, ids: Ints) -> Floats:
        which = ids[..., 0] - len(self.inner.tokens)
        values = self.inner.decode(np.where(which[..., None] < 0, ids, self.inner.encode(0.0)))
        return np.where(which < 0, values, np.array(list(SPECIAL.values()))[np.maximum(which, 0)])
