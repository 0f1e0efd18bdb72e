"""The private members of Lightning's strategy that the zoo uses exist and work; tests/sharding checks torch's."""

import pytest
import torch

from zoo.private_apis.fsdp_api import OpenModelParallelStrategy


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
