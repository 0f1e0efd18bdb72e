"""Options of every sampling function: hypothesis gives values of any type; each works or is refused by name."""

import re
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from zoo.errors import UserError
from zoo.generation.decoders import left_pad
from zoo.generation.sampling import generate, sample
from zoo.llama import LlamaConfig

VOCAB, CONTEXT = 20, 8
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 30), st.sampled_from([10**400, -(10**400), 2**63]), st.floats(width=64),
    st.text(max_size=3), st.sampled_from([np.int64(2), np.float32(0.5), np.bool_(True), 1j, b"1", torch.tensor(1)]),
)  # fmt: skip
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.builds(np.array, st.lists(st.integers(-1, 25), max_size=3))
)
GOOD = {
    "max_new_tokens": st.sampled_from([0, 1, 5, np.int32(3)]),
    "temperature": st.sampled_from([0, 0.0, 1, 0.7, 1e-320, 1e300, np.float32(0.5)]),
    "top_k": st.sampled_from([None, 1, 3, 10**30, np.int64(2)]),
    "top_p": st.sampled_from([None, 1, 1.0, 0.5, 5e-324, np.float64(0.3)]),
    "seed": st.sampled_from([None, 0, -1, 2**80, np.int64(7)]),
    "stop": st.sampled_from([(), 3, [1, 2], {4}, np.array([5, 6]), torch.tensor([7]), VOCAB - 1]),
    "pad": st.sampled_from([0, 19, np.int16(3)]),
    "lengths": st.sampled_from([None, [1, 2], torch.tensor([3, 1]), np.array([2, 2])]),
    "precision": st.just("fp32"),
    "slide": st.sampled_from([None, True, False]),
    "tokens": st.sampled_from(
        [torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.ones(2, 3).byte(), [[1, 2, 3], [3, 2, 1]], np.ones((2, 3), int)]
    ),
}  # fmt: skip


class Uniform(nn.Module):
    """A language model whose logits depend on the last token only."""

    def __init__(self):
        super().__init__()
        self.config = LlamaConfig(vocab_size=VOCAB, dim=8, n_heads=2, max_seq_len=CONTEXT)
        self.table = nn.Parameter(torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0)))

    def forward(self, tokens):
        return self.table[tokens], tokens


NETWORK = Uniform()


def is_one_sentence_about(error, names):
    message = str(error)
    return "\n" not in message and any(re.search(rf"\b{word}\b", message) for name in names for word in name.split())


@settings(max_examples=100, derandomize=True, deadline=None)
@example({"temperature": 1e-320}, {})
@example({}, {"temperature": 10**400})
@example({}, {"stop": [VOCAB]})
@example({}, {"tokens": torch.ones(2, 3)})
@given(
    st.fixed_dictionaries({}, optional=GOOD),
    st.dictionaries(st.sampled_from(sorted({*GOOD} - {"slide"})), VALUES, max_size=2),
)
def test_options_of_generate_work_or_are_refused_by_name(good, any_value):
    options = {"tokens": torch.ones(2, 3, dtype=torch.long), "max_new_tokens": 2} | good | any_value
    refusal = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tokens = generate(NETWORK, **options)
        except UserError as error:
            refusal = error
    if refusal is not None:  # which only values of any type may be
        names = {"tokens": "prompts token"}
        assert is_one_sentence_about(refusal, [names.get(name, name) for name in any_value] + ["lengths"]), refusal
        assert any_value or "lengths" in good
        return
    assert tokens.dtype == torch.int64
    assert tokens.min() >= 0
    assert tokens.max() < VOCAB
    assert tokens.shape[0] == len(options["tokens"])
    assert tokens.shape[1] <= 3 + options["max_new_tokens"]


def test_a_tiny_temperature_takes_the_most_likely_token():
    logits = torch.tensor([[1.0, 3.0, 2.0], [-1e30, -1e38, -2e30]])
    for temperature in (1e-320, 1e-200, 1e-99):
        for limits in ({}, {"top_k": 2}, {"top_p": 0.9}):
            assert sample(logits, torch.tensor([0.3, 0.99]), temperature, **limits).tolist() == [1, 0]


def test_types_that_mean_the_same_give_the_same_tokens():
    prompts = torch.tensor([[1, 2, 3], [4, 5, 6]])
    expected = generate(NETWORK, prompts, 4, seed=1, stop=[3], top_k=5)
    for tokens in (prompts.int(), prompts.tolist(), prompts.numpy(), prompts.to(torch.uint8)):
        got = generate(NETWORK, tokens, np.int64(4), seed=np.int64(1), stop=iter([3]), top_k=np.int32(5))
        assert torch.equal(got, expected)
    assert left_pad([iter([1]), np.array([2, 3])])[0].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": True}, "temperature must be a finite number of at least 0, not True"),
        ({"temperature": "hot"}, "temperature must be a finite number of at least 0, not 'hot'"),
        ({"top_k": 1.5}, "top_k must be a whole number, at least 1, or null for all tokens, not 1.5"),
        ({"seed": 1.0}, "seed must be a whole number, or null for a random one, not 1.0"),
        ({"stop": ["a"]}, "each id in stop must be a whole number, from 0, not 'a'"),
        ({"pad": VOCAB}, "pad must be a token id, not 20"),
        ({"lengths": [1.0, 2.0]}, "each id in lengths must be a whole number"),
        ({"tokens": [[1], [1, 2]]}, "prompts must be token ids, .* padded by zoo.generation.decoders.left_pad"),
        ({"tokens": "text"}, "prompts must be token ids, .* not a str"),
        ({"tokens": torch.tensor([1, 2])}, r"prompts must be \(batch, length\) with a token at least, not \(2,\)"),
        ({"precision": ["fp32"]}, "precision must be one of fp32, bf16, int8"),
    ],
)
def test_wrong_types_are_named(options, sentence):
    with pytest.raises(UserError, match=sentence):
        generate(NETWORK, **{"tokens": torch.ones(2, 3, dtype=torch.long), "max_new_tokens": 2, **options})
