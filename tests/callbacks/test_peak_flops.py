"""Peaks of GPUs: by the name of the card, from Lightning's table for others, without its warnings."""

import math

import pytest
import torch

from zoo.callbacks.peak_flops import device_flops, peak_flops


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


@pytest.mark.parametrize(
    ("name", "dtype", "precision", "flops"),
    [
        ("NVIDIA H200", torch.bfloat16, "highest", 989.4e12),  # Lightning's table does not have the card
        ("NVIDIA H200", torch.float32, "high", 494.7e12),
        ("NVIDIA H200", torch.float32, "highest", None),
        ("NVIDIA H100 80GB HBM3", torch.float32, "highest", 66.9e12),  # without tensor cores
        ("NVIDIA H100 NVL", torch.float16, "high", 835.5e12),  # Lightning has twice as much, with sparsity
        ("NVIDIA A40", torch.bfloat16, "high", 37.4e12),  # from Lightning's table
        ("AMD Instinct MI300X", torch.bfloat16, "high", None),
        ("Tesla T4", torch.bfloat16, "high", None),
    ],
)
def test_flops_of_a_device(monkeypatch, recwarn, name, dtype, precision, flops):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device=None: name)
    monkeypatch.setattr("torch.get_float32_matmul_precision", lambda: precision)
    monkeypatch.setattr("lightning.fabric.accelerators.cuda._is_ampere_or_later", lambda device=None: True)
    assert device_flops(torch.device("cuda", 0), dtype) == flops
    assert device_flops(torch.device("cpu"), dtype) is None
    assert not recwarn.list
