"""Contracts between the shared training code and a model: what a network must provide, checked by name.

A network need not inherit from these classes. `require` compares an object with a protocol and names what is missing.
"""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


class LanguageModelConfig(Protocol):
    """Sizes of a language model that the training code reads."""

    vocab_size: int
    """Number of token ids; the logits may have more columns, whose ids are never generated."""

    @property
    def max_seq_len(self) -> int:
        """Longest context in tokens."""


@runtime_checkable
class LanguageModelNetwork(Protocol):
    """A causal language model that `LanguageModel` can train: a torch.nn.Module with these members.

    Optional: `decoder(batch_size, max_len, precision, compile)` returns a `Decoder` with a cache. Otherwise every token
    evaluates the whole context.
    """

    config: Any
    """The network's sizes, a `LanguageModelConfig`."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) and hidden states (B, T, dim) of tokens (B, T); position t sees tokens 0 ... t."""

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood in nats of targets (B, T) given tokens (B, T); targets of -100 are ignored."""

    def flops_per_token(self, seq_len: int) -> float:
        """Floating-point operations of one training token, forward and backward."""


@runtime_checkable
class RegressionNetwork(Protocol):
    """A network that `Regressor` can train."""

    def flops(self, length: int) -> float:
        """Floating-point operations of training on one text of `length` tokens, forward and backward."""


@runtime_checkable
class Decoder(Protocol):
    """A language model prepared to generate for a fixed number of rows: prompts first, then one token at a time."""

    def prefill(self, tokens: Tensor, left_padding: Tensor | None = None) -> Tensor:
        """Logits (B, V) after prompts (B, T), of which the first `left_padding` (B,) columns are padding."""

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token in each row, tokens (B,)."""


def members(protocol: type) -> Iterator[str]:
    """The names of the attributes and methods that a protocol class declares."""
    for name in {**protocol.__annotations__, **vars(protocol)}:
        if not name.startswith("_"):
            yield name


def require(instance: object, protocol: type) -> None:
    """Check that `instance` has all members of `protocol`.

    Raises:
        TypeError: members are missing; the message names each, the first with its documentation.
    """
    missing = [name for name in members(protocol) if not hasattr(instance, name)]
    if missing:
        # A method's first line of documentation says what to write; an annotated attribute has none at run time.
        method = vars(protocol).get(missing[0])
        about = (getattr(method, "__doc__", None) or "").strip().split("\n")[0]
        hint = f"; {missing[0]}: {about}" if about else ""
        raise TypeError(f"{type(instance).__name__} is not a {protocol.__name__}: it lacks {', '.join(missing)}{hint}")
