"""Optimizers, norms and networks with sharded tensors compute what they compute with ordinary ones."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from zoo.optim import OptimizerConfig
from zoo.private_apis.fsdp_api import prepare_root
from zoo.sharding.network import collect, release, shard
from zoo.sharding.tensors import are_finite, full, is_sharded, local, shard_like, total_norm


class Network(nn.Module):
    """Two blocks and an output layer; `loss` calls none of the other methods."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.output = nn.Linear(6, 1)

    def loss(self, x):
        for layer in self.layers:
            x = layer(x).tanh()
        return self.output(x).square().mean()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_sharded_equals_training(optimizer, mesh):
    plain = nn.ModuleDict({"model": Network()})  # Muon's matrices are those with ".layers." in their name
    sharded = copy.deepcopy(plain)
    shard(sharded["model"], sharded["model"].layers, ("loss",), mesh)
    assert is_sharded(sharded["model"])
    assert not is_sharded(plain["model"])
    config = OptimizerConfig(optimizer=optimizer, lr=0.1)
    optimizers = [config.build(module.named_parameters()) for module in (plain, sharded)]
    assert [g["weight_decay"] for g in optimizers[0].param_groups] == [
        g["weight_decay"] for g in optimizers[1].param_groups
    ]
    for x in torch.randn(3, 4, 6):
        losses = [module["model"].loss(x) for module in (plain, sharded)]
        for loss in losses:
            loss.backward()
        gradients = [[p.grad for p in module.parameters()] for module in (plain, sharded)]
        assert torch.equal(total_norm(gradients[0]), total_norm(gradients[1]))
        for each in optimizers:
            each.step()
            each.zero_grad()
        assert losses[0] == losses[1]
    for expected, got in zip(plain.parameters(), sharded.parameters(), strict=True):
        assert torch.equal(full(got), expected)


def test_a_block_can_be_collected_before_the_first_forward_pass(mesh):
    network = Network()
    shard(network, network.layers, ("loss",), mesh)
    prepare_root(network)
    network.layers[0].unshard()
    assert type(network.layers[0].weight) is nn.Parameter
    assert network.loss(torch.ones(1, 6)).isfinite()


def test_collected_parameters_are_ordinary_tensors(mesh):
    network = Network()
    values = copy.deepcopy(network.state_dict())
    shard(network, network.layers, ("loss",), mesh, torch.bfloat16)
    collect(network)
    assert not any(isinstance(p, DTensor) for p in network.parameters())
    assert network.layers[0].weight.dtype == torch.bfloat16
    assert torch.equal(network.layers[0].weight, values["layers.0.weight"].bfloat16())
    assert torch.equal(network.output.weight, values["output.weight"])
    release(network)
    assert all(isinstance(p, DTensor) for p in network.parameters())


def test_helpers_treat_both_kinds_alike(mesh):
    plain = torch.arange(6.0).view(3, 2)
    sharded = distribute_tensor(plain, mesh, [Shard(0)])
    for tensor in (plain, sharded):
        assert torch.equal(local(tensor), plain)
        assert torch.equal(full(tensor), plain)
        assert total_norm([tensor]) == plain.norm()
    assert isinstance(shard_like(plain.double(), sharded), DTensor)
    assert shard_like(plain.double(), sharded).dtype == torch.float32
    broken = distribute_tensor(torch.tensor([1.0, torch.nan]), mesh, [Shard(0)])
    assert are_finite([sharded, broken, plain]) == [True, False, True]
    assert are_finite([]) == []
