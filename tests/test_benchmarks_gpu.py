"""The GPU parts of the benchmarks: peaks by the name of the card, and smaller batches where memory ends."""

import math
from functools import partial

import pytest
import torch

from benchmarks import revdeq
from benchmarks.gpu import peak_flops, with_smaller_batches


@pytest.mark.parametrize(
    ("name", "fp16", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12, 989.4e12),
        ("NVIDIA H100 PCIe", 756e12, 756e12),
        ("NVIDIA H100 NVL", 835.5e12, 835.5e12),
        ("NVIDIA H200", 989.4e12, 989.4e12),
        ("NVIDIA GH200 480GB", 989.4e12, 989.4e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 312e12),
        ("NVIDIA A100-PCIE-40GB", 312e12, 312e12),
        ("NVIDIA L4", 121e12, 121e12),
        ("NVIDIA L40S", 362e12, 362e12),
        ("NVIDIA L40", math.nan, math.nan),
        ("Tesla T4", 65e12, math.nan),
        ("Tesla V100-SXM2-16GB", 125e12, math.nan),
        ("Tesla V100-PCIE-32GB", 112e12, math.nan),
        ("NVIDIA GeForce RTX 3090", 71e12, 71e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 165.2e12),
        ("NVIDIA B200", 2250e12, 2250e12),
        ("AMD Instinct MI300X", math.nan, math.nan),
    ],
)
def test_peak_flops_by_the_name_of_the_card(name, fp16, bf16):
    assert peak_flops(name, torch.float16) == pytest.approx(fp16, nan_ok=True)
    assert peak_flops(name, torch.bfloat16) == pytest.approx(bf16, nan_ok=True)


def test_a_batch_is_halved_until_it_fits():
    tried = []

    def run(batch, most=9):
        tried.append(batch)
        if batch > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return 10 * batch

    assert with_smaller_batches(run, 32) == (80, {"batch": 8, "halved_from": 32})
    assert tried == [32, 16, 8]
    assert with_smaller_batches(run, 9) == (90, {"batch": 9})
    with pytest.raises(torch.cuda.OutOfMemoryError):
        with_smaller_batches(lambda batch: run(batch, most=0), 3)


def test_the_error_of_reversible_gradients():
    sizes = {
        "vocab_size": 31,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 12,
    }
    model = revdeq.build(**sizes)
    tokens = revdeq.text(model, 2, 11)

    def error(state_dtype):
        autocast = partial(torch.autocast, "cpu", enabled=False)
        return revdeq.exactness(model, tokens, autocast, "f", max_steps=4, state_dtype=state_dtype)["error"]

    assert error(torch.float64) < 1e-6 < error(torch.float32) < 1e-3
