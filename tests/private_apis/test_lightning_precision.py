"""Casting of weights without metrics and fixed buffers, and the 16-bit format of a device."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torchmetrics.aggregation import MeanMetric

from zoo.layers import RotaryEmbedding
from zoo.private_apis.lightning_precision import cast_weights, mixed_precision_of


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.tied = self.net[0]
        self.frozen = nn.Linear(2, 2)
        self.frozen.keeps_dtype = True
        self.lstm = nn.LSTM(2, 2)
        self.metric = MeanMetric()
        self.rotary = RotaryEmbedding(4, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_are_cast_and_metrics_tables_and_frozen_modules_are_not(dtype):
    module = Module()
    module.metric.update(2.0)
    cast_weights(module, dtype)
    cast = [*module.net.parameters(), *module.lstm.parameters(), module.net[1].running_mean]
    assert {tensor.dtype for tensor in cast} == {dtype}
    assert module.tied is module.net[0]
    assert module.dtype == dtype
    assert module.net[1].num_batches_tracked.dtype == torch.int64
    fixed = [*module.frozen.parameters(), module.metric.mean_value, module.rotary.cos]
    assert {tensor.dtype for tensor in fixed} == {torch.float32}
    # The metric moves to other devices as before, and its value is exact.
    module.metric.update(1234567.0)
    assert module.metric.compute() == 617284.5


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_a_gpu_without_bf16_gets_fp16(monkeypatch, has_bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert mixed_precision_of("cuda") == expected
    assert mixed_precision_of(torch.device("cuda", 1)) == expected
    assert mixed_precision_of("cpu") == "bf16-mixed"
