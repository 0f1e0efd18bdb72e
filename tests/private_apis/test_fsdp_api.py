"""The private members of torch's fully_shard and of Lightning's strategy that the zoo uses exist and work."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from zoo.private_apis.fsdp_api import OpenModelParallelStrategy, prepare_root


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_prepare_root_lets_a_block_be_collected_before_the_first_forward_pass(group):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(network[0], mesh=mesh)
    fully_shard(network, mesh=mesh)
    prepare_root(network)
    network[0].unshard()
    assert type(network[0].weight) is nn.Parameter
    assert torch.isfinite(network(torch.ones(1, 2)).sum())


@pytest.mark.parametrize(("shard_size", "sizes"), [(None, (1, 4)), (2, (2, 2)), (4, (1, 4)), (1, (4, 1))])
def test_the_mesh_has_copies_and_shards(shard_size, sizes, monkeypatch):
    strategy = OpenModelParallelStrategy(shard_size)
    strategy.parallel_devices = [torch.device("cpu")] * 4
    checked = []
    monkeypatch.setattr(strategy, "check_processes", checked.append)
    base = "lightning.pytorch.strategies.ModelParallelStrategy.setup_environment"
    monkeypatch.setattr(base, lambda _: None)
    strategy.setup_environment()
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == sizes
    assert checked == [4]
