"""What the strategy fsdp2 does not support is refused by name."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, StrategyRegistry

from zoo.cli.trainer_options import strategy_name
from zoo.errors import UserError
from zoo.llama import LlamaLM
from zoo.mini_rlm import MiniRLM
from zoo.sharding.strategy import FullySharded, shard_module

SIZES = {"vocab_size": 257, "dim": 8, "n_layers": 1, "n_heads": 2}


def refusal(module, strategy=None, precision="32-true"):
    trainer = SimpleNamespace(strategy=strategy or FullySharded(), precision=precision)
    with pytest.raises(UserError) as error:
        shard_module(module, trainer)
    return str(error.value)


def test_unsupported_combinations_are_refused_by_name():
    assert "MiniRLM cannot be sharded" in refusal(MiniRLM(encoder="transformer", vocab_size=257))
    for strategy in (ModelParallelStrategy(), FSDPStrategy()):
        assert "is not supported: set --trainer.strategy fsdp2" in refusal(LlamaLM(**SIZES), strategy)
    for precision in ("16-mixed", "16-true", "bf16-true", "64-true"):
        assert f"does not support precision {precision}" in refusal(LlamaLM(**SIZES), precision=precision)
    assert "--model.compile" in refusal(LlamaLM(**SIZES, compile=True))
    assert "--model.optimizer adafactor" in refusal(LlamaLM(**SIZES, optimizer="adafactor"))


def test_the_number_of_processes_must_fit():
    with pytest.raises(UserError, match="shard_size 3 does not divide the 4 processes"):
        FullySharded(shard_size=3).check_processes(4)
    with pytest.raises(UserError, match="shard_size"):
        FullySharded(shard_size=0)


def test_processes_with_other_sizes_are_refused():
    FullySharded().check_sizes([2, 2, 2])
    with pytest.raises(UserError, match="shard_size is 2 on rank 0 and not set on rank 1: start all processes with"):
        FullySharded(shard_size=2).check_sizes([2, None])


def test_the_short_name_is_registered():
    assert isinstance(StrategyRegistry.get("fsdp2"), FullySharded)


def test_names_of_strategies():
    names = {name: name for name in ("auto", "ddp", "ddp_fork", "ddp_find_unused_parameters_true", "fsdp2")}
    for given, name in (names | {"FullySharded": "fsdp2", "DDP": "ddp"}).items():
        assert strategy_name(given) == name
    for name in ("fsdp", "fsdp_cpu_offload", "deepspeed_stage_3", "xla"):
        with pytest.raises(UserError, match=f"strategy {name} is not supported: set it to ddp, or to fsdp2"):
            strategy_name(name)
    with pytest.raises(UserError, match=r"no strategy 'fdsp2'; did you mean fsdp2\?"):
        strategy_name("fdsp2")
