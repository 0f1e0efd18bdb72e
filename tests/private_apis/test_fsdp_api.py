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


def test_processes_are_compared_before_the_mesh_is_made(monkeypatch):
    strategy = OpenModelParallelStrategy(2)
    calls = []

    def gather(sizes, own):
        calls.append("gathered")
        sizes[:] = [own, None]

    module = "lightning.pytorch.strategies.model_parallel"
    monkeypatch.setattr(f"{module}.ModelParallelStrategy._setup_distributed", lambda _: calls.append("connected"))
    monkeypatch.setattr(f"{module}.ParallelStrategy.setup_environment", lambda _: None)
    monkeypatch.setattr(f"{module}._setup_device_mesh", lambda *_: calls.append("mesh"))
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    monkeypatch.setattr(strategy, "check_sizes", calls.append)
    monkeypatch.setattr(OpenModelParallelStrategy, "world_size", 2)
    strategy.parallel_devices = [torch.device("cpu")] * 2
    strategy._lightning_module = torch.nn.Linear(1, 1)
    strategy.setup_environment()
    assert calls == ["connected", "gathered", [2, None], "mesh"]
