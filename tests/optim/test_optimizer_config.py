"""OptimizerConfig: ranges of its settings, and which parameters each optimizer receives."""

import math

import pytest
import torch
from torch import nn

from zoo.errors import UserError
from zoo.optim import AdamW, MuonAdamW, OptimizerConfig, ResumedSchedule


class Network(nn.Module):
    """Named as the zoo's networks are: an embedding, layers, a norm and an output layer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.convolution = nn.Conv1d(4, 4, 3)
        self.output = nn.Linear(4, 7, bias=False)


def named_parameters():
    torch.manual_seed(0)
    return dict(nn.ModuleDict({"model": Network()}).named_parameters())


def names_of(group, parameters):
    return {name for name, p in parameters.items() if any(p is q for q in group["params"])}


MATRICES = {"model.embedding.weight", "model.output.weight", "model.convolution.weight"}
HIDDEN = {"model.layers.0.weight", "model.layers.1.weight"}
VECTORS = {"model.layers.0.bias", "model.layers.1.bias", "model.convolution.bias"}


def test_weight_decay_acts_on_matrices_only():
    parameters = named_parameters()
    optimizer = OptimizerConfig(weight_decay=0.2, lr=0.5).build(parameters.items())
    assert isinstance(optimizer, AdamW)
    assert [(names_of(g, parameters), g["weight_decay"], g["lr"]) for g in optimizer.param_groups] == [
        (MATRICES | HIDDEN, 0.2, 0.5),
        (VECTORS, 0.0, 0.5),
    ]


def test_muon_updates_only_matrices_inside_layers():
    parameters = named_parameters()
    optimizer = OptimizerConfig(optimizer="muon", weight_decay=0.2).build(parameters.items())
    assert isinstance(optimizer, MuonAdamW)
    muon, matrices, vectors = optimizer.param_groups
    assert isinstance(optimizer.parts[0], torch.optim.Muon)
    assert names_of(muon, parameters) == HIDDEN
    assert (muon["lr"], muon["weight_decay"]) == (0.01, 0.1)
    assert names_of(matrices, parameters) == MATRICES
    assert names_of(vectors, parameters) == VECTORS
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.2, 0.0)


def test_muon_needs_matrices_inside_layers():
    with pytest.raises(UserError, match="optimizer=muon needs a model with matrices inside layers: choose adamw"):
        OptimizerConfig(optimizer="muon").build(nn.Linear(3, 2).named_parameters())


def test_frozen_parameters_are_left_out_and_learning_rates_are_scaled():
    parameters = named_parameters()
    parameters["model.embedding.weight"].requires_grad_(False)
    optimizer = OptimizerConfig(lr=0.5).build(parameters.items(), lambda name: 0.1 if ".layers." in name else 1.0)
    assert [(names_of(g, parameters), g["lr"]) for g in optimizer.param_groups] == [
        (MATRICES - {"model.embedding.weight"}, 0.5),
        ({"model.convolution.bias"}, 0.5),
        (HIDDEN, 0.05),
        ({"model.layers.0.bias", "model.layers.1.bias"}, 0.05),
    ]


def llama():
    from zoo.llama import Llama, LlamaConfig

    return Llama(LlamaConfig(vocab_size=11, dim=16, n_layers=1, n_heads=2, max_seq_len=8))


def revdeq():
    from zoo.revdeq import RevDEQ, RevDEQConfig

    return RevDEQ(RevDEQConfig(11, hidden_size=16, num_heads=2, intermediate_size=16, max_position_embeddings=8))


def mini_rlm():
    from zoo.mini_rlm import MiniRLM

    return MiniRLM(encoder="transformer", vocab_size=11, dim=16, n_layers=1, n_heads=2).model


def regress_lm():
    from zoo.regress_lm.model import EncoderDecoder, RegressLMConfig

    return EncoderDecoder(RegressLMConfig(vocab_size=11, number_vocab_size=9, number_len=4, dim=16, n_heads=2))


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
@pytest.mark.parametrize("make_network", [llama, revdeq, mini_rlm, regress_lm])
def test_every_language_model_and_regressor_accepts_every_optimizer(name, make_network):
    network = nn.ModuleDict({"model": make_network()})
    config = OptimizerConfig(optimizer=name, warmup_steps=0)
    optimizer = config.build(network.named_parameters())
    schedule = ResumedSchedule(optimizer, lambda step: config.lr_factor(step, 3))
    before = [p.detach().clone() for p in network.parameters()]
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    schedule.step()
    assert all(not torch.equal(p, q) for p, q in zip(network.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "sgd"}, "optimizer must be one of adamw, adafactor, muon, not 'sgd'"),
        ({"lr": -1e-3}, "lr must be a finite number of at least 0, not -0.001"),
        ({"lr": math.nan}, "lr must be a finite number of at least 0, not nan"),
        ({"muon_lr": math.inf}, "muon_lr must be a finite number of at least 0, not inf"),
        ({"weight_decay": -0.1}, "weight_decay must be a finite number of at least 0, not -0.1"),
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), not 1.0"),
        ({"beta2": -0.5}, r"beta2 must be in \[0, 1\), not -0.5"),
        ({"min_lr_ratio": 1.5}, r"min_lr_ratio must be in \[0, 1\], not 1.5"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, not -1"),
    ],
)
def test_settings_out_of_range_raise_user_error(settings, message):
    with pytest.raises(UserError, match=message):
        OptimizerConfig(**settings).build(named_parameters().items())


def test_settings_at_the_ends_of_their_ranges_are_accepted():
    OptimizerConfig(lr=0.0, beta1=0.0, beta2=0.0, min_lr_ratio=1.0, weight_decay=0.0, warmup_steps=0).check()
