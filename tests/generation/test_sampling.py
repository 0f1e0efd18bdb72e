"""The sampling loop at the end of the context, and its checks, with networks that have no cache."""

import warnings

import pytest
import torch
from torch import nn

from zoo.errors import Diverged, UserError
from zoo.generation.decoders import left_pad
from zoo.generation.sampling import generate, sample, stream_tokens
from zoo.llama import LlamaConfig


class Counter(nn.Module):
    """Predicts the last token plus the number of tokens, modulo 50: its output depends on the length of the text."""

    def __init__(self, **attributes):
        super().__init__()
        self.config = LlamaConfig(vocab_size=50, dim=8, n_heads=2, max_seq_len=8)
        self.device = nn.Parameter(torch.zeros(()))
        self.lengths = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, tokens):
        self.lengths.append(tokens.shape[1])
        following = (tokens + tokens.shape[1]) % 50
        return nn.functional.one_hot(following, 50).float() * 9, tokens


def test_stream_ends_with_a_warning_at_the_end_of_the_context():
    network = Counter()
    with pytest.warns(UserWarning, match="context of 8 tokens is full: 6 of 9 tokens"):
        tokens = generate(network, torch.tensor([[1, 2, 3]]), 9, temperature=0)
    assert tokens.shape == (1, 9)
    assert network.lengths == [3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("attributes", "options"), [({"slides": True}, {}), ({}, {"slide": True})])
def test_sliding_continues_from_the_last_half_of_the_context(attributes, options):
    network = Counter(**attributes)
    tokens = generate(network, torch.tensor([[1, 2, 3]]), 11, temperature=0, **options)
    assert tokens.shape == (1, 14)
    assert network.lengths == [3, 4, 5, 6, 7, 8, 4, 5, 6, 7, 8]


def test_the_argument_slide_takes_precedence_over_the_networks_attribute():
    with pytest.warns(UserWarning, match="context of 8 tokens is full"):
        assert generate(Counter(slides=True), torch.tensor([[1, 2, 3]]), 11, temperature=0, slide=False).shape == (1, 9)


def test_ragged_rows_slide_together_and_lose_their_padding():
    network = Counter(slides=True)
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 7, 8]])
    continued = generate(network, tokens, 6, temperature=0, lengths=torch.tensor([6, 2]))
    assert continued.shape == (2, 12)
    # Rows are evaluated one by one without their padding. After sliding, both hold four tokens.
    assert network.lengths == [6, 2, 7, 3, 8, 4, 4, 4, 5, 5, 6, 6]


@pytest.mark.parametrize(
    ("prompts", "count", "warning"),
    [
        ([range(1, 12), range(20, 25), [7]], 4, "prompt 1, of 11 tokens, is longer .* of 8: only its last 5 tokens"),
        ([[7], range(20, 25), range(1, 10)], 2, "prompt 3, of 9 tokens, is longer .* of 8: only its last 7 tokens"),
        (
            [range(1, 10), range(1, 12), [7, 8, 9]], 5,
            "prompts 1 and 2, of up to 11 tokens, are longer .* of 8: only their last 4 tokens are",
        ),
    ],
)  # fmt: skip
def test_a_prompt_that_fits_is_not_cut_next_to_a_longer_one(prompts, count, warning):
    """Each row continues as its prompt alone, until the longest row reaches the end of the context."""
    tokens, lengths = left_pad([list(prompt) for prompt in prompts])
    with pytest.warns(UserWarning, match=warning):
        together = generate(Counter(), tokens, count, temperature=0, lengths=lengths)[:, tokens.shape[1] :]
    assert together.shape[1] >= min(count, 4)
    for row, prompt in zip(together, prompts, strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = generate(Counter(), torch.tensor([list(prompt)]), count, temperature=0)[0, len(prompt) :]
        assert row.tolist() == alone[: together.shape[1]].tolist()


def test_a_common_left_padding_is_removed():
    network = Counter()
    padded = generate(network, torch.tensor([[0, 0, 1, 2]]), 3, temperature=0, lengths=torch.tensor([2]))
    assert padded[0, 2:].tolist() == generate(Counter(), torch.tensor([[1, 2]]), 3, temperature=0)[0].tolist()
    assert network.lengths == [2, 3, 4]


class Broken(Counter):
    """Predicts NaN or infinity for one token of the second row, from a number of tokens on."""

    def __init__(self, value, start=0):
        super().__init__()
        self.value, self.start = value, start

    def forward(self, tokens):
        logits, hidden = super().forward(tokens)
        if tokens.shape[1] >= self.start:
            logits[-1, :, 7] = self.value
        return logits, hidden


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}, {"top_k": 4, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("stop", [(), (40,)])
@pytest.mark.parametrize("temperature", [0, 1])
def test_nan_logits_are_an_error(temperature, stop, options):
    options = {"temperature": temperature, "stop": stop, "seed": 0, **options}
    prompts = torch.tensor([[1, 2], [3, 4]])
    with pytest.raises(UserError, match="the model's logits are NaN, so that no token can be chosen"):
        generate(Broken(torch.nan), prompts, 3, **options)
    tokens = stream_tokens(Broken(torch.nan, start=4), prompts, 4, **options)
    next(tokens), next(tokens)
    with pytest.raises(Diverged, match="the model's logits are NaN"):
        next(tokens)
    assert generate(Broken(-torch.inf), prompts, 3, **options).shape == (2, 5)


def test_zero_new_tokens_yield_nothing():
    assert not list(stream_tokens(Counter(), torch.tensor([[1]]), 0))


def test_a_rows_draws_depend_on_the_seed_and_its_number_only():
    def draw(prompts):
        return generate(Counter(), torch.tensor(prompts), 5, temperature=9.0, seed=1)

    assert torch.equal(draw([[1, 2], [3, 4]])[0], draw([[1, 2], [9, 9]])[0])
    assert not torch.equal(draw([[1, 2], [1, 2]])[0], draw([[1, 2], [1, 2]])[1])
    assert torch.equal(draw([[1, 2], [3, 4]])[0], draw([[1, 2]])[0])  # the first row is as alone


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.95}, {"top_k": 4, "top_p": 0.9}])
def test_sample_inverts_the_cumulative_distribution(options):
    logits = torch.tensor([0.3, 2.0, -1.0, 1.0, 0.9])
    draws = sample(logits.expand(100_000, -1), (torch.arange(100_000) + 0.5) / 100_000, temperature=0.8, **options)
    probabilities = (logits.double() / 0.8).softmax(-1)
    order = probabilities.argsort(descending=True)
    n = options.get("top_k", 5)
    if "top_p" in options:
        top = probabilities[order[:n]] / probabilities[order[:n]].sum()
        n = int((top.cumsum(0) < options["top_p"]).sum()) + 1
    expected = torch.zeros(5, dtype=torch.float64)
    expected[order[:n]] = probabilities[order[:n]] / probabilities[order[:n]].sum()
    torch.testing.assert_close(torch.bincount(draws, minlength=5) / 1e5, expected.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": float("nan")}, "temperature must be a finite number of at least 0, not nan"),
        ({"top_k": 0}, "top_k must be at least 1, or null for all tokens, not 0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], or null for all tokens, not 1.5"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 0, not -1"),
        ({"tokens": torch.tensor([[50]])}, "outside the model's vocabulary of 50: use the tokenizer"),
        ({"lengths": torch.tensor([1, 2])}, "lengths must be 1 numbers from 1 to 2"),
    ],
)
def test_wrong_options_raise_user_error(options, message):
    with pytest.raises(UserError, match=message):
        generate(Counter(), **{"tokens": torch.tensor([[1, 2]]), "max_new_tokens": 3, **options})
