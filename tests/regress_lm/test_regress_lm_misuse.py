"""The Python API of RegressLM with arguments of other types, empty inputs and numbers out of range."""

import numpy as np
import pandas
import pytest
import torch

from zoo.errors import UserError
from zoo.regress_lm import Example, ExampleInput, RegressLM

SMALL = {"max_input_len": 64, "dim": 16, "n_heads": 2, "n_encoder_layers": 1, "n_decoder_layers": 1}
EXAMPLES = [Example("one", 1.0), Example("two", 2.0)]
INPUTS = [ExampleInput("one"), ExampleInput("two")]


@pytest.fixture(scope="module")
def model() -> RegressLM:
    return RegressLM.from_scratch(**SMALL)


@pytest.fixture(scope="module")
def two() -> RegressLM:
    return RegressLM.from_scratch(**SMALL, n_objectives=2, number_digits=1)


def test_empty_input_gives_an_empty_result(model, two):
    assert model.sample([], 3) == []
    assert model.log_prob([]).shape == (0,)
    assert model.log_prob([]).dtype == torch.float64
    assert two.exact_mean(iter([])).shape == (0, 2)


def test_generators_texts_and_numpy_scalars_are_accepted(model):
    expected = model.sample(INPUTS, 3, seed=1)
    got = model.sample((["one", "two"]), np.int64(3), np.float32(1.0), seed=np.int64(1), batch_size=np.int32(1))
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    torch.testing.assert_close(model.log_prob(iter(EXAMPLES)), model.log_prob(EXAMPLES))
    trained, again = RegressLM.from_scratch(**SMALL), RegressLM.from_scratch(**SMALL)
    settings = {"max_epochs": 2, "progress": False}
    losses = trained.fine_tune((e for e in EXAMPLES), (e for e in EXAMPLES), **settings)
    assert losses == again.fine_tune(EXAMPLES, EXAMPLES, **settings)
    series = model.sample(pandas.Series(["one", "two"]), 3, seed=1)
    np.testing.assert_array_equal(series, expected)
    # Tensors and arrays are numbers like others.
    arrays = [Example("one", torch.tensor([1.0])), Example("two", np.array(2))]
    torch.testing.assert_close(model.log_prob(arrays), model.log_prob(EXAMPLES))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: m.sample("one", 3), "inputs must be a list of ExampleInput, not a str"),
        (lambda m: m.sample(INPUTS[0], 3), "inputs must be a list of ExampleInput, not a ExampleInput"),
        (lambda m: m.sample([1], 3), r"inputs\[0\] must be an ExampleInput, not a int"),
        (lambda m: m.sample(pandas.DataFrame({"x": ["one"]}), 3), "not a DataFrame: give a column of texts"),
        (lambda m: m.fine_tune(pandas.DataFrame({"x": ["one"]})), "not a DataFrame: give pairs of its columns"),
        (lambda m: m.sample({"one", "two"}, 3), "inputs must be a list of ExampleInput, not a set"),
        (lambda m: RegressLM.load(3), "3 is not a path"),
        (lambda m: m.sample(None, 3), "inputs must be a list of ExampleInput, not a NoneType"),
        (lambda m: m.sample([""], 3), "example 0 has no text"),
        (lambda m: m.sample(INPUTS, 0), "num_samples must be at least 1, not 0"),
        (lambda m: m.sample(INPUTS, 2.0), "num_samples must be a whole number"),
        (lambda m: m.sample(INPUTS, True), "num_samples must be a whole number"),
        (lambda m: m.sample(INPUTS, 10**12), "num_samples must be at most 1,000,000"),
        (lambda m: m.sample([], 0), "num_samples must be at least 1, not 0"),
        (lambda m: m.sample(INPUTS, 3, "hot"), "temperature must be a finite number of at least 0"),
        (lambda m: m.sample(INPUTS, 3, 10**400), "temperature must be a finite number of at least 0"),
        (lambda m: m.sample(INPUTS, 3, float("nan")), "temperature must be a finite number of at least 0"),
        (lambda m: m.sample(INPUTS, 3, top_k=0), "top_k must be at least 1"),
        (lambda m: m.sample(INPUTS, 3, seed="0"), "seed must be a whole number"),
        (lambda m: m.sample(INPUTS, 3, batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda m: m.log_prob(EXAMPLES, batch_size=-1), "batch_size must be at least 1, not -1"),
        (lambda m: m.log_prob(INPUTS), r"examples\[0\] must be an Example, not a ExampleInput"),
        (lambda m: m.log_prob([Example("one", [1.0, 2.0])]), "example 0 has 2 numbers, but the model 1 objectives"),
        (lambda m: m.fine_tune([("one", 1.0)]), r"examples\[0\] must be an Example, not a tuple"),
        (lambda m: m.fine_tune(np.ones(3)), r"examples\[0\] must be an Example, not a float64"),
        (lambda m: m.fine_tune({"one": 1.0}), "examples must be a list of Example, not a dict"),
        (lambda m: m.fine_tune(iter([])), "there are no examples"),
        (lambda m: m.fine_tune(EXAMPLES, batch_size=0), "batch_size must be at least 1"),
        (lambda m: m.fine_tune(EXAMPLES, max_epochs=0), "max_epochs must be at least 1"),
        (lambda m: m.fine_tune(EXAMPLES, warmup_share=2), "warmup_share must be from 0 to 1"),
        (lambda m: m.fine_tune(EXAMPLES, clip=float("nan")), "clip must be positive"),
        (lambda m: m.fine_tune(EXAMPLES, lora_rank=-1), "lora_rank must be at least 0"),
        (lambda m: m.fine_tune(EXAMPLES, lr=-1), "lr must be"),
        (lambda m: m.fine_tune(EXAMPLES, seed="a"), "seed must be a whole number"),
        (lambda m: m.save("no/such/folder/model.ckpt"), "cannot be written: give the path of a file in a folder"),
        (lambda m: RegressLM.from_scratch(tokenizer=3), "tokenizer must be a Tokenizer, a name or a path, not a int"),
        (lambda m: RegressLM.from_scratch(seed=1.5), "seed must be a whole number"),
        (lambda m: RegressLM.from_scratch(max_input_len=0), "max_input_len must be at least 1"),
        (lambda m: RegressLM.from_scratch(n_objectives=True), "n_objectives must be a whole number"),
        (lambda m: RegressLM.from_scratch(number_digits="4"), "number_digits must be a whole number"),
    ],
)
def test_wrong_arguments_are_named(model, call, sentence):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=sentence):
        call(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_text_is_no_list_of_digits(two):
    with pytest.raises(UserError, match="y of an example must be a number or a list of numbers, not '12'"):
        two.log_prob([Example("one", "12")])
    changed = Example("one", [1.0, 2.0])
    changed.y = "12"  # after its construction
    with pytest.raises(UserError, match="not '12'"):
        two.log_prob([changed])
