"""Numbers that must not depend on torch's default dtype: draws, angles, steps of the optimizer, sums of metrics."""

import math

import numpy as np
import pytest
import torch

from zoo.datamodules.windows import Windows
from zoo.icr.analysis.gradients import normals, prior
from zoo.icr.model import ICRegConfig, Network
from zoo.icr.task import Task
from zoo.optim import AdamW
from zoo.regress_lm.model import EncoderDecoder, RegressLMConfig
from zoo.regress_lm.word_transfer import transfer_embedding
from zoo.training.metrics import SummedLoss
from zoo.training.random_streams import stream

TASK = Task(D=2, K=3, sigma2=0.25, M="inf")


def adamw():
    """A parameter after 2,100 steps: fp16 cannot count beyond 2,048."""
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.float32))
    parameter.grad = torch.ones_like(parameter)
    optimizer = AdamW([parameter], lr=1e-2, weight_decay=0.1)
    optimizer.step()
    optimizer.state[parameter]["step"] = 2100
    optimizer.step()
    return parameter.detach()


def summed_loss():
    metric = SummedLoss()
    for _ in range(3):
        words = torch.tensor([50_001.0], dtype=torch.float32)
        metric.update(torch.tensor(0.1, dtype=torch.float32), torch.tensor(70_000), words)
    return metric.compute()["loss_per_word"]


def initial_weights():
    network = Network(ICRegConfig(D=2, K=3, d_model=8, n_layers=1, n_heads=2))
    network.initialize(stream(0, "test"))
    return network.positions.detach().float()


COMPUTATIONS = {
    "AdamW": adamw,
    "SummedLoss": summed_loss,
    "draws of gradients": lambda: torch.cat([part.flatten() for part in normals(TASK, 4, seed=0)]),
    "prior": lambda: prior(TASK),
    "new words": lambda: transfer_embedding(torch.arange(6, dtype=torch.float32)[:, None], {"a": 0}, {"b": 0})[0],
}


@pytest.fixture(params=[torch.float64, torch.float16, torch.bfloat16], ids=str)
def with_default(request):
    """A function that computes with another default dtype."""

    def compute(function):
        torch.set_default_dtype(request.param)
        try:
            return function()
        finally:
            torch.set_default_dtype(torch.float32)

    return compute


@pytest.mark.parametrize("name", COMPUTATIONS)
def test_numbers_are_the_same_with_every_default_dtype(name, with_default):
    expected, got = COMPUTATIONS[name](), with_default(COMPUTATIONS[name])
    assert got.dtype == expected.dtype == torch.float32
    assert torch.equal(got, expected)


def test_tables_and_initial_weights_are_those_of_fp32_in_the_default_dtype(with_default):
    config = RegressLMConfig(vocab_size=9, number_vocab_size=5, number_len=7, dim=8, n_heads=2)
    expected, got = EncoderDecoder(config).positions, with_default(lambda: EncoderDecoder(config)).positions
    assert torch.equal(got, expected.to(got.dtype))
    dtype = with_default(torch.get_default_dtype)
    assert torch.equal(with_default(initial_weights), initial_weights().to(dtype).float())


def test_words_of_a_window_are_counted_in_fp32(tmp_path, with_default):
    np.arange(9, dtype=np.uint8).tofile(tmp_path / "tokens")
    windows = Windows(tmp_path / "tokens", np.uint8, 4, stride=4, n_words=1_000_001)
    words = with_default(lambda: windows[0]).words
    assert words.dtype == torch.float32
    assert math.isclose(words, 500_000.5)
